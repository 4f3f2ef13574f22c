"""Makes models and judges them. Everything that ends, well or not, ends as a file in the training's folder."""

from bench.worker.jobs import Job, follow, work
from bench.worker.machine import device
from bench.worker.place import Place

__all__ = ["Job", "Place", "device", "follow", "work"]
