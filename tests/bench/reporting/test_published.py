"""The lecture's seven tables, copied by hand from its slides: each number is in published.csv."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.records import BenchError
from bench.reporting import published

# Table 3 of Temporal Ensembling: CIFAR-100 error and its deviation with 10,000 and with all labels.
CIFAR100 = {
    "Supervised-only": ("51.21", "0.33", "29.14", "0.25"),
    "Supervised-only with augmentation": ("44.56", "0.30", "26.42", "0.17"),
    "Pi-model": ("43.43", "0.54", "29.06", "0.21"),
    "Pi-model with augmentation": ("39.19", "0.36", "26.32", "0.04"),
    "Temporal ensembling with augmentation": ("38.65", "0.51", "26.30", "0.15"),
}
VAT = {  # SVHN with 1,000 labels, CIFAR-10 with 4,000
    "Pi-model [Laine&Aila]": (("4.82", "0.17"), ("12.36", "0.31")),
    "Temporal ensembling [Laine&Aila]": (("4.42", "0.16"), ("12.16", "0.24")),
    "Sajjadi et al. [35]": (None, ("11.29", "0.24")),
    "VAT": (("5.42", "0.22"), ("11.36", "0.34")),
    "VAT+EntMin": (("3.86", "0.11"), ("10.55", "0.05")),
}
MIXMATCH = {  # 250 and 4,000 labels
    "MixMatch": ("11.80", "6.00"),
    "MixMatch without distribution averaging (K=1)": ("17.09", "8.06"),
    "MixMatch with K=3": ("11.55", "6.23"),
    "MixMatch with K=4": ("12.45", "5.88"),
    "MixMatch without temperature sharpening (T=1)": ("27.83", "10.59"),
    "MixMatch with parameter EMA": ("11.86", "6.47"),
    "MixMatch without MixUp": ("39.11", "10.97"),
    "MixMatch with MixUp on labeled only": ("32.16", "9.22"),
    "MixMatch with MixUp on unlabeled only": ("12.35", "6.83"),
    "MixMatch with MixUp on separate labeled and unlabeled": ("12.26", "6.50"),
    "Interpolation Consistency Training": ("38.60", "6.81"),
}
VOC = {  # classification fc6-8, classification all, detection, segmentation
    "ImageNet labels": ("78.9", "79.9", "56.8", "48.0"),
    "Random": ("", "53.3", "43.4", "19.8"),
    "Random rescaled (Krahenbuhl et al. 2015)": ("39.2", "56.6", "45.6", "32.6"),
    "Egomotion (Agrawal et al. 2015)": ("31.0", "54.2", "43.9", ""),
    "Context Encoders (Pathak et al. 2016b)": ("34.6", "56.5", "44.5", "29.7"),
    "Tracking (Wang & Gupta 2015)": ("55.6", "63.1", "47.4", ""),
    "Context (Doersch et al. 2015)": ("55.1", "65.3", "51.1", ""),
    "Colorization (Zhang et al. 2016a)": ("61.5", "65.6", "46.9", "35.6"),
    "BIGAN (Donahue et al. 2016)": ("52.3", "60.1", "46.9", "34.9"),
    "Jigsaw Puzzles (Noroozi & Favaro 2016)": ("", "67.6", "53.2", "37.6"),
    "NAT (Bojanowski & Joulin 2017)": ("56.7", "65.3", "49.4", ""),
    "Split-Brain (Zhang et al. 2016b)": ("63.0", "67.1", "46.7", "36.0"),
    "ColorProxy (Larsson et al. 2017)": ("", "65.9", "", "38.4"),
    "Counting (Noroozi et al. 2017)": ("", "67.7", "51.4", "36.6"),
    "RotNet": ("70.87", "72.97", "54.4", "39.1"),
}
VOC_COLUMNS = (
    {"protocol": "classification", "setting": "trained layers fc6-8"},
    {"protocol": "classification", "setting": "trained layers all"},
    {"protocol": "detection (Fast R-CNN)"},
    {"protocol": "segmentation (FCN)"},
)
LINEAR = {  # Conv1 to Conv5 on ImageNet
    "ImageNet labels": ("19.3", "36.3", "44.2", "48.3", "50.5"),
    "Random": ("11.6", "17.1", "16.9", "16.3", "14.1"),
    "Random rescaled (Krahenbuhl et al. 2015)": ("17.5", "23.0", "24.5", "23.2", "20.6"),
    "Context (Doersch et al. 2015)": ("16.2", "23.3", "30.2", "31.7", "29.6"),
    "Context Encoders (Pathak et al. 2016b)": ("14.1", "20.7", "21.0", "19.8", "15.5"),
    "Colorization (Zhang et al. 2016a)": ("12.5", "24.5", "30.4", "31.5", "30.3"),
    "Jigsaw Puzzles (Noroozi & Favaro 2016)": ("18.2", "28.8", "34.0", "33.9", "27.1"),
    "BIGAN (Donahue et al. 2016)": ("17.7", "24.5", "31.0", "29.9", "28.0"),
    "Split-Brain (Zhang et al. 2016b)": ("17.7", "29.3", "35.4", "35.2", "32.8"),
    "Counting (Noroozi et al. 2017)": ("18.0", "30.6", "34.3", "32.5", "25.7"),
    "RotNet": ("18.8", "31.7", "38.7", "38.2", "36.5"),
}
INSTANCE = {  # linear SVM, nearest neighbor on CIFAR-10
    "Param Softmax": ("60.3", "63.0"),
    "Non-Param Softmax": ("75.4", "80.8"),
    "NCE m=1": ("44.3", "42.5"),
    "NCE m=10": ("60.2", "63.4"),
    "NCE m=512": ("64.3", "78.4"),
    "NCE m=4096": ("70.2", "80.4"),
}
EMBEDDING = {"32": "34.0", "64": "38.8", "128": "41.0", "256": "40.1"}


def _agrees(table_id, expected, columns):
    """Every number under its method and column, blanks blank, and no number besides."""
    numbers = published.table(table_id, "test")
    assert published.methods(numbers)
    assert set(published.methods(numbers)) == set(expected)
    for method, values in expected.items():
        for condition, value in zip(columns, values, strict=True):
            found = published.one(published.pick(numbers, condition, "test"), method, "test")
            told = (found["value"], found["std"]) if found else ("", "")
            assert told == (value if isinstance(value, tuple) else (value or "", "")), (method, condition)
    assert len(numbers) == sum(v not in {"", None} for values in expected.values() for v in values)


def test_table_1_temporal_ensembling_on_cifar100():
    expected = {m: ((v[0], v[1]), (v[2], v[3])) for m, v in CIFAR100.items()}
    _agrees("L1_te_cifar100", expected, ("10000 labels", "all 50000 labels"))


def test_table_2_virtual_adversarial_training():
    _agrees("L2_vat", VAT, ("SVHN", "CIFAR-10"))


def test_table_3_mixmatch_ablation():
    _agrees("L3_mixmatch_ablation", MIXMATCH, ("250 labels", "4000 labels"))


def test_table_4_voc_transfer():
    _agrees("L4_voc", VOC, VOC_COLUMNS)


def test_table_5_linear_probes_on_imagenet():
    _agrees("L5_imagenet_linear", LINEAR, tuple(f"Conv{i}" for i in range(1, 6)))


def test_table_6_instance_discrimination():
    columns = ("linear SVM on 128-d features", "weighted kNN / nearest neighbour on 128-d features")
    _agrees("L6_instdisc_cifar", INSTANCE, columns)


def test_table_7_embedding_size():
    numbers = published.table("L7_instdisc_embed", "test")
    found = dict(zip(numbers["setting"].str.removeprefix("embedding "), numbers["value"], strict=True))
    assert found == EMBEDDING


def test_the_file_is_whole():
    every = published.load()
    assert tuple(every.columns) == published.COLUMNS
    assert len(every) == 972
    assert pd.to_numeric(every["value"], errors="coerce").isna().sum() == 1  # one statement is in words
    assert (every["status"] != "").all()
    assert (every.loc[every["table_id"].str.match(r"L\d_"), "source"] != "").all()


def test_a_caller_cannot_spoil_the_numbers():
    spoiled = published.load()
    spoiled.loc[:, "value"] = "0"
    assert (published.load()["value"] != "0").any()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda _: published.table("L5_imagenet_liner", "s.toml"), "did you mean 'L5_imagenet_linear'"),
        (lambda n: published.pick(n, "Conv9", "s.toml"), "did you mean 'Conv5'"),
        (lambda n: published.pick(n, {"settings": "Conv5"}, "s.toml"), "did you mean 'setting'"),
        (lambda n: published.pick(n, {"setting": "Conv9"}, "s.toml"), "no published number has"),
        (lambda n: published.one(n, "RotNet", "s.toml"), "5 published numbers of 'RotNet' differ in setting"),
    ],
)
def test_slips_are_told_in_one_line(call, says):
    with pytest.raises(BenchError, match=r"^s\.toml: ") as caught:
        call(published.table("L5_imagenet_linear", "test"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_found_in_two_places_is_one_and_the_surer_source_counts():
    numbers = published.pick(
        published.table("ICT", "here"),
        {"backbone": "CNN-13", "dataset": "CIFAR-10", "setting": "4000 labels"},
        "here",
    )
    assert len(numbers) == 2
    found = published.one(numbers, "ICT", "here")
    assert (found["value"], found["status"]) == ("7.29", "verified")
