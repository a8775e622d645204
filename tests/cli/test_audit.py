"""`smdtrack audit` from the outside: exit codes, stdout, stderr."""

import argparse
import csv
import json
import subprocess
import sys

import psutil
import pytest
import timm
import torch
from click.testing import CliRunner

from smdtrack.cli import _audit_work, main

SMALL = "test_efficientnet"
SIZE = ("--input-size", "3", "32", "32")
WEIGHT = "blocks.0.0.conv.weight"


@pytest.fixture
def run():
    def invoke(*args):
        return CliRunner().invoke(main, ["audit", *map(str, args)])

    return invoke


def refused(result, *parts):
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line
    assert result.stdout == ""


def test_help_has_an_example(run):
    result = run("--help")
    assert result.exit_code == 0
    assert "smdtrack audit resnet50" in result.stdout


def test_the_table_groups_by_stage(run):
    result = run(SMALL, *SIZE)
    assert result.exit_code == 0
    for text in ("conv_stem", "blocks.1", "conv_head", "batch norm", "scale-invariant", "check: scaling all"):
        assert text in result.stdout


def test_the_json_document_is_as_agreed(run):
    result = run(SMALL, *SIZE, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert list(document) == [
        "model",
        "input_size",
        "parameters",
        "invariant_parameters",
        "batch_norm_parameters",
        "seconds",
        "precision",
        "notes",
        "certificate",
        "weights",
    ]
    assert (document["model"], document["input_size"]) == (SMALL, [3, 32, 32])
    assert set(document["certificate"]) == {"tensor", "filter"}
    assert max(document["certificate"].values()) < 1e-9
    keys = ["name", "shape", "verdict", "cause", "norm", "scope", "filter_dim", "cosine", "decayed"]
    assert all(list(weight) == keys for weight in document["weights"])
    weight = next(weight for weight in document["weights"] if weight["name"] == WEIGHT)
    assert weight["cosine"] < 1e-9
    assert (weight["verdict"], weight["cause"], weight["norm"]) == ("invariant", "batch_norm", "blocks.0.0.bn1")
    assert (weight["scope"], weight["filter_dim"]) == ("filter", 0)
    sizes = [torch.Size(w["shape"]).numel() for w in document["weights"] if w["verdict"] == "invariant"]
    assert document["invariant_parameters"] == sum(sizes)
    unused = [weight for weight in document["weights"] if weight["verdict"] == "unused"]
    assert unused
    assert all(weight["cause"] is None and weight["cosine"] is None for weight in unused)


def test_verdicts_select_tensors(run):
    result = run(SMALL, *SIZE, "--verdict", "unused", "--json")
    assert {weight["verdict"] for weight in json.loads(result.stdout)["weights"]} == {"unused"}
    result = run(SMALL, *SIZE, "--verdict", "unused")
    assert "blocks.2.0.bn2.bias" in result.stdout
    assert WEIGHT not in result.stdout
    assert "has no tensor that is degenerate" in run(SMALL, *SIZE, "--verdict", "degenerate").stdout


def test_explain_shows_the_evidence(run):
    result = run(SMALL, *SIZE, "--explain", WEIGHT)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        f"{WEIGHT} [16, 24, 3, 3] is invariant: scaling the weight by any positive factor leaves the output unchanged.",
        "Cause: batch norm (blocks.0.0.bn1): a batch norm after the weight removes its scale.",
        "Each filter may be scaled by its own factor (slices along dimension 0).",
        "Weight decay reaches it under timm's rule.",
    ]
    assert "below 1e-07 proposes invariant, above 1e-05 proves sensitive" in lines[4]
    document = json.loads(run(SMALL, *SIZE, "--json", "--explain", WEIGHT).stdout)
    assert [weight["name"] for weight in document["weights"]] == [WEIGHT]
    assert document["weights"][0]["explanation"] == lines[:4]
    assert max(document["weights"][0]["evidence"]["cosines"]) < 1e-9
    refused(run(SMALL, *SIZE, "--explain", "blocks.0.0.conv.weigth"), "no parameter", WEIGHT)


def test_a_model_without_invariant_weights_is_answered_in_words(run):
    result = run("test_vit")
    assert result.exit_code == 0
    assert "No weight of test_vit is scale-invariant: scaling any of them changes the output." in result.stdout
    assert "--verdict invariant" not in result.stdout


def test_verdicts_and_causes_are_explained_where_they_appear(run):
    shown = run("test_nfnet").stdout
    assert "weight standardisation: the layer normalises its own weight" in shown
    assert "degenerate:" not in shown
    shown = run(SMALL, *SIZE, "--verdict", "unused").stdout
    assert "unused: the output does not depend on it" in shown
    assert "invariant:" not in shown


def test_names_are_not_folded_in_a_pipe_and_weight_decay_is_shown(run):
    lines = run(SMALL, *SIZE, "--verdict", "invariant", "--verdict", "sensitive").stdout.splitlines()
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert rows["tensor"] == "decayed"
    assert (rows["blocks.3.0.conv_pw.weight"], rows["classifier.bias"]) == ("yes", "no")


def test_json_has_the_share_of_batch_norm_that_csv_has(run, tmp_path):
    document = json.loads(run("test_nfnet", "--json", "--csv", tmp_path / "a.csv").stdout)
    assert document["invariant_parameters"] > 0
    assert document["batch_norm_parameters"] == 0
    assert int(next(csv.DictReader((tmp_path / "a.csv").open()))["batch_norm_parameters"]) == 0


def test_several_models_give_a_list_and_one_that_fails_does_not_end_it(run):
    result = run("test_byobnet", "test_vit", "--input-size", 3, 20, 20)
    assert result.exit_code == 1
    assert "test_byobnet: " in result.stdout
    assert "1 models audited, 1 failed" in result.stderr
    result = run("test_byobn?t", *SIZE, "--json")
    assert result.exit_code == 0
    assert [document["model"] for document in json.loads(result.stdout)] == ["test_byobnet"]


def test_the_csv_file_is_resumed(run, tmp_path):
    file = tmp_path / "census.csv"
    assert run("test_efficientnet", "test_byobnet", *SIZE, "--csv", file).exit_code == 0
    rows = list(csv.DictReader(file.open()))
    assert [row["model"] for row in rows] == ["test_efficientnet", "test_byobnet"]
    assert int(rows[0]["invariant"]) == 16
    with file.open("a") as out:
        out.write("test_resnet,3x32")  # killed in the middle of a row
    result = run("test_byobnet", "test_efficientnet", *SIZE, "--csv", file)
    assert result.exit_code == 0
    assert "2 of 2 models are in" in result.stderr
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    refused(run(SMALL, "--csv", tmp_path / "other.csv"), "not a CSV file of smdtrack audit")


def test_a_worker_gives_its_memory_back_after_each_model(monkeypatch):
    given_back = []
    monkeypatch.setattr(_audit_work, "return_memory", lambda: given_back.append(1))
    requests = [_audit_work.Request(name, input_size=(3, 32, 32)) for name in (SMALL, "no_such_model")]
    results = [_audit_work._attempt(request) for request in requests]
    assert [type(result).__name__ for result in results] == ["Audit", "Failure"]
    assert len(given_back) == 2


def test_a_worker_ends_with_the_command_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "smdtrack", "audit", "test_res*", "wide_resnet50_2", "--csv", "census.csv"]
    audit = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert "test_resnet" in audit.stdout.readline()  # the worker is there, and goes on with the next model
    workers = psutil.Process(audit.pid).children(recursive=True)
    assert workers
    audit.kill()
    audit.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert len(list(csv.DictReader((tmp_path / "census.csv").open()))) == 1


def test_checkpoints_are_loaded_and_refused(run, tmp_path):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(SMALL)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "good.pth")
    save_file(model.state_dict(), tmp_path / "good.safetensors")
    for name in ("good.pth", "good.safetensors"):
        assert run(SMALL, *SIZE, "--checkpoint", tmp_path / name, "--json").exit_code == 0
    state = model.state_dict()
    state["strange.weight"] = state.pop("conv_stem.weight")
    state["classifier.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "bad.pth")
    refused(
        run(SMALL, "--checkpoint", tmp_path / "bad.pth"),
        "does not fit",
        "1 missing (conv_stem.weight)",
        "1 unknown (strange.weight)",
        "classifier.bias (3,)",
    )
    (tmp_path / "text.pth").write_text("hello")
    refused(run(SMALL, "--checkpoint", tmp_path / "text.pth"), "is not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(run(SMALL, "--checkpoint", tmp_path / "list.pth"), "no mapping of names to tensors")
    refused(run(SMALL, "--checkpoint", tmp_path / "none.pth"), "no checkpoint file")


def test_a_checkpoint_of_timms_training_script_is_loaded(run, tmp_path):
    model = timm.create_model(SMALL)
    arguments = argparse.Namespace(model=SMALL, lr=0.1)
    checkpoint = {"epoch": 1, "arch": SMALL, "state_dict": model.state_dict(), "version": 2, "args": arguments}
    torch.save(checkpoint, tmp_path / "last.pth.tar")
    before = torch.serialization.get_safe_globals()
    assert run(SMALL, *SIZE, "--checkpoint", tmp_path / "last.pth.tar", "--json").exit_code == 0
    assert torch.serialization.get_safe_globals() == before


class Evil:
    def __reduce__(self):
        return (print, ("executed\n",))


def test_a_pickle_is_not_executed(run, tmp_path):
    for content in ({"weight": Evil()}, {"state_dict": {}, "args": argparse.Namespace(evil=Evil())}):
        torch.save(content, tmp_path / "evil.pth")
        result = run(SMALL, "--checkpoint", tmp_path / "evil.pth")
        refused(result, "is not a checkpoint")
        assert "executed" not in result.output.splitlines()


def test_wrong_input_ends_with_one_line(run):
    refused(run("resnt18"), "no timm model is called 'resnt18'", "resnet18")
    refused(run("zzz*"), "no timm model matches 'zzz*'")
    refused(run("test_vit", "--input-size", 3, 8, 8), "test_vit does not take", "(3, 8, 8)")
    refused(run(SMALL, "--device", "toaster"), "device 'toaster'", "cpu")
    refused(run(SMALL, "test_byobnet", "--explain", WEIGHT), "one model")
    assert run(SMALL, "--verdict", "maybe").exit_code == 2
    assert run(SMALL, "--input-size", 3, 0, 3).exit_code == 2


def test_out_of_memory_is_said_before_the_model_is_built(run, monkeypatch):
    from smdtrack.cli import _zoo as zoo

    create_model, on_meta = timm.create_model, []

    def build(name, **options):
        model = create_model(name, **options)
        on_meta.append(all(parameter.is_meta for parameter in model.parameters()))
        return model

    monkeypatch.setattr(timm, "create_model", build)
    monkeypatch.setattr(zoo, "available_memory", lambda device: 1000)
    refused(run(SMALL), "out of memory", "GiB are free on cpu")
    assert on_meta == [True], "its shapes alone were made"
    monkeypatch.undo()
    monkeypatch.setattr(timm, "create_model", build)
    assert run(SMALL, *SIZE).exit_code == 0
    assert on_meta[-1] is False


def test_channels_and_classes_can_be_chosen(run):
    document = json.loads(run(SMALL, "--input-size", 1, 32, 32, "--num-classes", 7, "--json").stdout)
    shapes = {weight["name"]: weight["shape"] for weight in document["weights"]}
    assert (shapes["conv_stem.weight"][1], shapes["classifier.weight"][0]) == (1, 7)
