"""Sharing over the Hugging Face hub: `push` uploads a checkpoint in one commit, `pull` fetches one and verifies it."""

from bltkit.share.pull import Pulled, pull
from bltkit.share.push import Pushed, push

__all__ = ["Pulled", "Pushed", "pull", "push"]
