"""Datasets of the Hugging Face hub, or a local directory in the hub's layout, read by the library `datasets`.

The library resolves configurations, splits, file formats and revisions; it gives Arrow batches, and from there the
way is that of `parquet`. Notable: `broken` judges rows. A file that breaks in the middle stops the run whatever the
policy: a failing connection looks the same, and half a split must not pass for a whole one. Files of one's own that
are partly broken are better named by the kinds `parquet` and `jsonl`, which judge each file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bltkit.data.sources.columns import BATCH_ROWS, TableSource
from bltkit.data.sources.source import Document, Faults, Input, stat_inputs
from bltkit.files.hub import files_below, hub_or_cache, quiet_datasets, refuse_cut_files


class HubSource(TableSource):
    """Rows of one split of a dataset. `name` is OWNER/NAME or a local directory (README.md with `configs` in its YAML
    header, data/train-00000-of-00001.parquet, train.jsonl ...).

    With `streaming` rows are read where they lie; without, the library first makes an Arrow copy in its cache, which
    later runs use. Both give the same documents. `revision` is a branch, tag or commit on the hub.
    """

    kind: Literal["hub"] = "hub"
    name: str = Field(min_length=1)
    """OWNER/NAME of a dataset, or a local directory."""
    config: str | None = None
    """Configuration of the dataset; its default one when absent."""
    split: str = Field(default="train", min_length=1)
    """Split that is read."""
    streaming: bool = False
    """Read rows where they lie, without a copy in the cache."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    @property
    def label(self) -> str:
        return ":".join(part for part in (self.name, self.config, self.split) if part)

    def inputs(self) -> tuple[Input, ...] | None:
        """A local directory: every file in it. The hub: the library's copies, or None while streaming."""
        if self._directory is not None:
            return stat_inputs(sorted(files_below(self._directory)))
        if self.streaming:
            return None
        with self._one_line():
            return stat_inputs(Path(file["filename"]) for file in self._load().cache_files)

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        """Documents are named `name[:config]:split:row`, rows counted from 1, in the order of the split."""
        with self._one_line():
            dataset = self._load().with_format("arrow")
            if dataset.features is not None:
                dataset = dataset.select_columns(
                    self.columns(dataset.features.arrow_schema, f"data source {self.label}")
                )
            batches = dataset.iter(batch_size=BATCH_ROWS)
        row = 1
        while True:
            with self._one_line():
                batch = next(batches, None)
            if batch is None:
                return
            yield from self.batch_documents(batch, self.label, row, faults)
            row += batch.num_rows

    @property
    def _directory(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise ValueError(f"data source {self.label} needs datasets: pip install 'bltkit[hub]'") from None
        name = self.name if self._directory is None else str(self._directory)
        if self._directory is not None:
            refuse_cut_files(self._directory)
        if self._directory is None and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise ValueError(
                f"data source hub: {name} is neither a directory (relative to {Path.cwd()}) nor OWNER/NAME"
            )
        with self._within_reach():
            return datasets.load_dataset(
                name, self.config, split=self.split, streaming=self.streaming, revision=self.revision
            )

    @contextmanager
    def _within_reach(self) -> Iterator[None]:
        """The hub, or its cache where it does not answer; a directory needs neither."""
        if self._directory is not None:
            yield
            return
        with hub_or_cache() as out_of_reach:
            try:
                yield
            except Exception as error:
                if out_of_reach is None:
                    raise
                raise ValueError(
                    f"data source {self.label}: {out_of_reach}, and no copy is cached; check the network, or name a "
                    "directory"
                ) from error

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """What the library raises, of whatever kind, as one line that names the source."""
        try:
            with quiet_datasets():
                yield
        except Exception as error:  # DatasetsError, HfHubHTTPError, YAMLError, ArrowInvalid ...: no common base
            if isinstance(error, ValueError) and str(error).startswith("data source "):
                raise
            raise ValueError(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        cause = error.__cause__ or error.__context__  # "An error occurred while generating": the cause says which
        parts = [str(error), str(cause)] if cause is not None and "error occurred" in str(error) else [str(error)]
        reason = " ".join(" ".join(parts).split())[:400]
        if "JSON parse error" in reason:  # the library knows neither file nor line
            reason += '; kind = "jsonl" with the paths of its files names the file and the line'
        return f"data source {self.label}: {reason}"
