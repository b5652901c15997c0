"""Schedules over interruptions, and branches: a run that goes on from another one's checkpoint with all it held."""

import json
import shutil
from pathlib import Path

import pytest

from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import load_toml, parse
from bltkit.train import TrainConfig, read_metrics, train
from tests.tiny_training import Workplace, same

WARMUP = "optim.warmup_steps=2"
TRUNK = ["optim.schedule={kind = 'wsd', decay_steps = 0}", WARMUP, "checkpoint.every_steps=3"]
DECAY = ["optim.schedule={kind = 'wsd', decay_steps = 4}", WARMUP, "optim.schedule_steps=10"]
GUARD = ["guard.spike_factor=3", "guard.window=5", "guard.after=0"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def trunk(place: Workplace, kind: str = "blt", *more: str, steps: int = 9) -> Path:
    """At steps 3, 6 and 9; of these 6 is kept for good."""
    keep = ["checkpoint.keep=1", "checkpoint.keep_every=6"]
    place.train("trunk", kind, *TRUNK, *keep, f"trainer.max_steps={steps}", *more)
    return place.path / "trunk"


@pytest.mark.parametrize("kind", ["blt", "entropy"])
def test_a_branch_equals_a_run_that_had_its_schedule_all_along(kind: str, place: Workplace) -> None:
    """The decay begins at step 6, where the branch leaves the trunk."""
    found = trunk(place, kind, *GUARD)
    assert sorted(step.name for step in found.glob("step-*")) == ["step-00000006", "step-00000009"]
    before = {name: tensor.clone() for name, tensor in place.tensors("trunk").items()}
    branch = f"trainer.branch={found / 'step-00000006'}"
    place.train("branch", kind, *DECAY, *GUARD, branch, "trainer.max_steps=10")
    place.train("whole", kind, *DECAY, *GUARD, "trainer.max_steps=10")
    same(place.tensors("branch"), place.tensors("whole"))
    whole = place.losses("whole")
    assert place.losses("branch") == {step: figures for step, figures in whole.items() if step > 6}
    assert place.losses("trunk")[6] == whole[6] and whole[10][2] < whole[7][2] == 1e-2
    same(place.tensors("trunk"), before)
    positions = [json.loads((place.path / out / "latest/training.json").read_text()) for out in ("branch", "whole")]
    assert [position.pop("seconds") > 0 for position in positions] == [True, True]
    assert positions[0] == positions[1] and len(positions[0]["guard"]["losses"]) == 5
    records = [load_bundle(place.path / out).record for out in ("branch", "whole")]
    assert records[0]["bytes_seen"] == records[1]["bytes_seen"]


def test_a_branch_is_resumed_from_its_own_checkpoints(place: Workplace) -> None:
    """Also one that was killed before its first, and then starts from the trunk once more."""
    found = trunk(place)
    branch = f"trainer.branch={found}"
    place.train("whole", "blt", *DECAY, branch, "trainer.max_steps=13")
    (place.path / "parts").mkdir()
    (place.path / "parts" / "config.toml").write_text("of the run that was killed")
    (place.path / "parts" / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    said: list[str] = []
    place.train("parts", "blt", *DECAY, branch, "trainer.max_steps=11", resume=True, say=said.append)
    assert said[0] == f"no complete checkpoint in {place.path / 'parts'}: starting over" and "transformers" in said[-1]
    kept: TrainConfig = parse(TrainConfig, load_toml(place.path / "parts" / "config.toml"), "kept")
    assert kept.trainer.branch == str(found) and load_bundle(place.path / "parts").record["steps"] == 11
    shutil.rmtree(found)  # the trunk is needed no more
    place.train("parts", "blt", *DECAY, branch, "trainer.max_steps=13", resume=True)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole") and place.losses("whole").keys() == {10, 11, 12, 13}


def test_without_a_length_the_branch_decays_at_its_own_end(place: Workplace) -> None:
    found = trunk(place)
    fields = place.fields("blt", "optim.schedule={kind = 'wsd', decay_steps = 2}", WARMUP)
    del fields["optim"]["schedule_steps"]
    fields["trainer"] |= {"branch": str(found), "max_steps": 13}
    train(parse(TrainConfig, fields, "test"), place.path / "branch", say=lambda line: None)
    assert [rate for *_, rate in place.losses("branch").values()] == pytest.approx([0.01, 0.01, 0.01, 0.00505])


def test_a_trunk_killed_before_its_link_moved_has_a_newest_checkpoint(place: Workplace) -> None:
    found = trunk(place)
    (found / "latest").unlink()
    (found / "latest").symlink_to("step-00000006")
    place.train("branch", "blt", *DECAY, f"trainer.branch={found}", "trainer.max_steps=11")
    assert min(place.losses("branch")) == 10


def test_what_cannot_be_branched_off_is_refused(place: Workplace) -> None:
    found = trunk(place)
    plain = place.path / "plain"
    bundle = load_bundle(found)
    save_bundle(plain, Bundle(bundle.model, None, bundle.rule))
    for branch, steps, message in (
        (place.path / "none", 12, "is no directory; name that of a run"),
        (found / "step-00000003", 12, r"is not there; .*trunk has step-00000006, step-00000009 \(checkpoint.keep_ev"),
        (plain, 12, "holds no training state; its weights alone can be had by trainer.init"),
        (found / "metrics.jsonl", 12, "is no directory"),
        ("bltkit:tiny", 12, "is no directory"),
        (found, 9, r"trunk' is at step 9 already; raise trainer.max_steps \(9\)"),
        (found / "step-00000006", 5, r"is at step 6 already; raise trainer.max_steps \(5\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            place.train("branch", "blt", f"trainer.branch={branch}", f"trainer.max_steps={steps}")
        assert "\n" not in str(caught.value) and "remove" not in str(caught.value)
        assert not (place.path / "branch").exists()
    for override, message in (
        ("model.latent.layers=2", "another shape than the config"),
        ("trainer.seed=9", r"trainer\.seed: 9, but"),
        ("data.validation_fraction=0", "belongs to another corpus"),
        (f"trainer.init={plain}", "give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            place.train("branch", "blt", f"trainer.branch={found}", "trainer.max_steps=12", override)
        assert not (place.path / "branch").exists()


def test_a_longer_schedule_is_taken_over_where_it_is_given(place: Workplace) -> None:
    """schedule_steps: what is given counts from the resumed step on; left out, the first run's length stays."""
    first = ["trainer.max_steps=5", "optim.schedule_steps=5"]
    place.train("given", "cnn", *first)
    place.train("given", "cnn", "trainer.max_steps=10", "optim.schedule_steps=20", resume=True)
    place.train("long", "cnn", "trainer.max_steps=10", "optim.schedule_steps=20")
    place.train("short", "cnn", "trainer.max_steps=10", "optim.schedule_steps=5")
    rates = {out: [rate for *_, rate in place.losses(out).values()] for out in ("given", "long", "short")}
    assert rates["given"] == rates["short"][:5] + rates["long"][5:]
    position = json.loads((place.path / "given/latest/training.json").read_text())
    assert position["schedule_steps"] == 20
    place.train("given", "cnn", "trainer.max_steps=12", "optim.schedule_steps=20", resume=True)
    assert len(place.losses("given")) == 12


def test_a_branch_goes_on_in_the_middle_of_a_report(place: Workplace) -> None:
    """The trunk's two steps since its last line belong to the branch's first."""
    found = trunk(place, "blt", "trainer.log_every=4")
    branch = f"trainer.branch={found / 'step-00000006'}"
    place.train("branch", "blt", *DECAY, branch, "trainer.max_steps=10", "trainer.log_every=4")
    place.train("whole", "blt", *DECAY, "trainer.max_steps=10", "trainer.log_every=4")
    ours, theirs = (
        [row["loss"] for row in read_metrics(place.path / out) if "loss" in row] for out in ("branch", "whole")
    )
    assert ours == theirs[1:] and len(ours) == 2
