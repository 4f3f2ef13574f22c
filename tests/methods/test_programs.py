"""Files that are networks themselves: what they give, what is refused before anything of it runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from bench.contracts import DataShape
from bench.records import BenchError
from methods.checkpoint import Checkpoint
from methods.parts.programs import Program, kind, read

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # TorchScript is deprecated, and tracing tells what it fixes
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.5)


class Net(nn.Module):
    """Batch norm, sizes that vary, several results of one operator, a constant and a buffer that is not saved."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.Linear(width, 5)
        self.register_buffer("shift", torch.arange(5.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.dropout(self.norm(self.conv(x)).relu(), 0.5, self.training)
        n, c, h, w = y.shape
        y = y.reshape(n, c, h * w)
        first, second = y.split([1, c - 1], 1)
        values, _ = torch.cat([first, second], 1).max(2)
        return (self.fc(values) + self.shift) * torch.tensor(2.0)


def net():
    torch.manual_seed(0)
    made = Net().eval()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made


def exported(path, made, *, batch=2, fixed=False):
    varies = (
        None if fixed else ({0: torch.export.Dim("n"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    )
    torch.export.save(torch.export.export(made, (torch.rand(batch, 3, 16, 16),), dynamic_shapes=varies), path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an exported program."""
    path = tmp_path_factory.mktemp("whole") / "w.pt2"
    exported(path, net())
    return path.read_bytes()


def pixels(side=16, count=3):
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def expected(made, images):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    return made((images.float() / 255 - mean) / std)


@pytest.mark.parametrize("how", ["exported", "scripted", "traced"])
@pytest.mark.parametrize("side", [16, 21])
@torch.no_grad()
def test_a_program_gives_what_its_network_gives(tmp_path, how, side):
    made, path = net(), tmp_path / "any.name"
    if how == "exported":
        exported(path.with_suffix(".pt2"), made)
        path.with_suffix(".pt2").rename(path)
    else:
        (
            torch.jit.script(made) if how == "scripted" else torch.jit.trace(made, torch.rand(2, 3, 16, 16))
        ).save(path)
    assert kind(path) == ("exported" if how == "exported" else "torchscript")
    program = Program(path, MEAN, STD, 32)
    torch.testing.assert_close(program(pixels(side)), expected(made, pixels(side)))
    assert (program.dim, program.layers, list(program.parameters())) == (5, (), [])


@torch.no_grad()
def test_a_fixed_batch_is_filled_and_a_fixed_size_is_told(tmp_path):
    made = net()
    exported(tmp_path / "w.pt2", made, fixed=True)
    program = Program(tmp_path / "w.pt2", MEAN, STD, 224)
    torch.testing.assert_close(program(pixels()), expected(made, pixels()))  # 3 images by batches of 2
    with pytest.raises(BenchError, match=r"w\.pt2 takes images of 16 pixels, not 18: write side = 16"):
        program(pixels(18))


def test_it_is_the_checkpoints_network_and_changed_files_are_told(whole, tmp_path):
    (tmp_path / "w.pt2").write_bytes(whole)
    shape = DataShape(5, 10, 16, color=True, flip=True)
    method = Checkpoint(file=str(tmp_path / "w.pt2"), network="program", side=16)
    model = method.build(None, shape, torch.Generator())
    assert set(model.state_dict()) == {"encoder.input.mean", "encoder.input.std"}
    with pytest.raises(BenchError, match="it gives its output alone"):
        model.encoder.maps(pixels())
    with pytest.raises(BenchError, match="changed since it was planned"):
        Checkpoint(file=method.file, network="program", file_sha256="0" * 64).build(
            None, shape, torch.Generator()
        )


# ---- what is refused -----------------------------------------------------------------------------


def edited(path, change):
    """The archive with its parts changed: ``change`` takes {name: bytes} below the root."""
    with zipfile.ZipFile(path) as archive:
        parts = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"w/{name}", content)


def in_json(name, change):
    def edit(parts):
        record = json.loads(parts[name])
        change(record)
        parts[name] = json.dumps(record)

    return edit


def target(value):
    def change(record):
        record["graph_module"]["graph"]["nodes"][0]["target"] = value

    return in_json("models/model.json", change)


class Ran:
    """A pickle that leaves a trace."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def pickled_weight(parts):
    text = io.BytesIO()
    torch.save(Ran(), text)
    parts["data/weights/weight_0"] = text.getvalue()

    def change(record):
        next(iter(record["config"].values()))["use_pickle"] = True

    in_json("data/weights/model_weights_config.json", change)(parts)


def pickled_inputs(parts):
    """Which torch's loader unpickles, and we do not read."""
    parts["data/sample_inputs/model.pt"] = pickle.dumps(Ran())


def evaluated_sizes(parts):
    """Which torch's loader evaluates."""
    text = "__import__('sys').exit('ran')"

    def change(record):
        sizes = record["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text
        record["guards_code"] = [text]

    in_json("models/model.json", change)(parts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (target("torch.os.system"), "calls 'torch.os.system'; only tensor operators"),
        (target("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file.default'"),
        (target("torch.ops.aten.add.__class__"), "calls 'torch.ops.aten.add.__class__'"),
        (target("torch.ops.aten.__class__.mro"), "calls"),
        (target("_operator.methodcaller"), "calls '_operator.methodcaller'"),
        (target("torch.ops.load_library"), "calls 'torch.ops.load_library'"),
        (pickled_weight, "holds a pickled weight_0"),
        (in_json("models/model.json", lambda r: r["schema_version"].update(major=99)), "export it again"),
        (lambda parts: parts.pop("data/weights/model_weights_config.json"), "has no data/weights"),
        (lambda parts: parts.update({"models/model.json": b"{"}), "cannot be read as exported"),
        (lambda parts: parts.update({"data/weights/weight_0": b"1234"}), "cannot be read as exported"),
    ],
)
def test_an_exported_program_with_anything_else_is_refused(whole, tmp_path, change, told):
    (tmp_path / "w.pt2").write_bytes(whole)
    edited(tmp_path / "w.pt2", change)
    with pytest.raises(BenchError) as error:
        read(tmp_path / "w.pt2")
    assert told in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "w.pt2"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [pickled_inputs, evaluated_sizes])
@torch.no_grad()
def test_what_torch_would_run_is_not_even_looked_at(whole, tmp_path, change):
    (tmp_path / "w.pt2").write_bytes(whole)
    edited(tmp_path / "w.pt2", change)
    torch.testing.assert_close(
        Program(tmp_path / "w.pt2", MEAN, STD, 16)(pixels()), expected(net(), pixels())
    )


def test_a_program_that_still_learns_is_told(tmp_path):
    exported(tmp_path / "w.pt2", net().train())
    with pytest.raises(BenchError, match=r"call eval\(\) on the network before"):
        read(tmp_path / "w.pt2")


def test_torchscript_that_writes_files_is_not_loaded(tmp_path):
    class Writer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    torch.jit.script(Writer()).save(tmp_path / "w.pt")

    def change(parts):
        (code,) = (n for n in parts if n.endswith(".py"))
        parts[code] = parts[code].replace(b"return", b"ops.aten.save(x, 'trace')\n    return")

    edited(tmp_path / "w.pt", change)
    with pytest.raises(
        BenchError, match=r"calls ops\.aten\.save, which is no tensor operator; it is not loaded"
    ):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"x" * 100, b"", None, "state dict", "cut"])
def test_other_files_are_told_in_one_line(tmp_path, content):
    path = tmp_path / "w.pt"
    if content == "state dict":
        torch.save(net().state_dict(), path)
    elif content == "cut":
        torch.jit.script(net()).save(path)
        edited(path, lambda parts: parts.pop("data.pkl"))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_program_of_two_inputs_or_of_other_outputs_is_told(tmp_path):
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    image = torch.rand(2, 3, 16, 16)
    torch.export.save(torch.export.export(Two(), (image, image)), tmp_path / "two.pt2")
    with pytest.raises(BenchError, match="takes 2 inputs"):
        read(tmp_path / "two.pt2")
    torch.export.save(torch.export.export(Pair(), (image,)), tmp_path / "pair.pt2")
    with pytest.raises(BenchError, match="neither features"):
        Program(tmp_path / "pair.pt2", MEAN, STD, 16)
