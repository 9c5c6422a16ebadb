"""`nanogpt plan`: its lines can be typed, its figures are those of show params and of training."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.api.training import branch_point
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import MAX_LINE, NanogptError
from nanogpt_dist.presets import PRESETS
from tests.conftest import TINY, Run
from tests.test_readme import understand

H100 = ("--device", "h100-80gb")


def planned(*words: object) -> dict[str, object]:
    """What `nanogpt plan WORDS --json` prints."""
    return json.loads(printed(*words, "--json"))


def printed(*words: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, words)])
    if isinstance(done.exception, NanogptError):
        raise done.exception
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def next_line(text: str) -> list[str]:
    """What stands behind `nanogpt` in the line to type."""
    [line] = re.findall(r"(?m)^Next: nanogpt (.*)$", text)
    return shlex.split(line)


@pytest.mark.parametrize("preset", [name for name in PRESETS if not PRESETS[name].get("init_from")])
def test_show_params_and_plan_agree(preset: str) -> None:
    shown = CliRunner().invoke(app, ["show", "params", preset, "--json"])
    counted, found = json.loads(shown.stdout), planned(preset, *H100)
    assert found["parameters"] == counted["total"]
    whole = [way["parts"] for way in found["alternatives"] if way["strategy"] == "single"]
    fp32, state = counted["fp32_bytes"], counted["training_bytes"] - 2 * counted["fp32_bytes"]
    assert {parts["weights"] for parts in whole} == {fp32}
    assert {parts["moments"] for parts in whole} == {state}


def test_bare_it_plans_the_default_preset_on_this_machine() -> None:
    text = printed("--peak", 1)
    assert "gpt2-124m: 124,373,760 parameters" in text
    assert next_line(text)[:2] == ["train", "gpt2-124m"]
    for name in ("steps", "FLOPs", "step", "checkpoints", "time", "cost", "optimum"):
        assert re.search(rf"(?m)^{name} ", text), name


@pytest.mark.parametrize("gpus", [1, 8, 32])
@pytest.mark.parametrize("preset", ["gpt2-124m", "gpt2-1558m", "modern-350m"])
def test_the_line_of_every_size_is_understood(preset: str, gpus: int) -> None:
    text = printed(preset, *H100, "--gpus", gpus, "--seed", 7)
    words = next_line(text)
    understand(words)
    assert words[-2:] == ["--seed", "7"]
    assert ("launch" in words) == (gpus > 1)
    if gpus == 32:
        assert words[:4] == ["launch", "--slurm", "--nnodes", "4"]
        job = ["launch", "--dry-run", *words[1:]]
        done = CliRunner().invoke(app, job)
        assert done.exit_code == 0
        assert "#SBATCH --nodes=4" in done.stdout


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_what_it_says_to_type_trains(
    ranks: int,
    corpus: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    """Literally: with the same steps, tokens and parameters as planned."""
    settings = [*TINY, "--dataset", corpus, "--max-iters", 3, "--out-dir", tmp_path / "run"]
    place = ["--gpus", ranks, "--device", "cpu", "--peak", 1]
    settings = without("--device", settings)
    found = planned("quickstart", *settings, *place)
    [_, *words] = shlex.split(str(found["command"]))
    done = json.loads(nanogpt(*words, "--json").stdout.splitlines()[-1])
    assert (done["step"], done["tokens"]) == (found["steps"], found["tokens"])
    assert found["fits"]
    saved = sum(f.stat().st_size for f in (tmp_path / "run/checkpoints").rglob("*.safetensors"))
    checkpoints = len(list((tmp_path / "run/checkpoints").glob("step-*")))
    assert checkpoints == found["checkpoints"]["count"]  # type: ignore[index]
    size = found["checkpoints"]["bytes"]  # type: ignore[index]
    assert saved / checkpoints == pytest.approx(size, rel=0.05)


def test_a_setting_that_is_given_several_times_stands_in_the_line_so() -> None:
    given = ["--sample-prompt", "a", "--sample-prompt", "b c"]
    words = next_line(printed("gpt2-124m", *H100, *given))
    understand(words)
    assert words == ["train", "gpt2-124m", *given]


@pytest.mark.parametrize("target", [".", "checkpoints/step-00000008"])
@pytest.mark.parametrize("asked", [("--budget", "1e15"), ("--hours", "1")])
def test_no_other_size_is_chosen_for_what_has_begun(
    target: str, asked: tuple[str, str], trained: Path
) -> None:
    with pytest.raises(NanogptError, match="a run has one: give a preset"):
        printed(trained / target, *asked, *H100)


def test_a_checkpoint_gets_the_folder_that_training_asks_for(trained: Path) -> None:
    checkpoint = trained / "checkpoints/step-00000008"
    found = shlex.split(str(planned(checkpoint, *H100, "--peak", 60)["command"]))
    understand(found[1:])
    out_dir = found[found.index("--out-dir") + 1]
    assert out_dir == f"{trained}-step-00000008"
    assert branch_point(str(checkpoint), out_dir, fresh=False) == checkpoint
    named = planned(checkpoint, "--out-dir", "other", *H100, "--peak", 60)["command"]
    assert str(named).count("--out-dir") == 1


@pytest.mark.parametrize(("own", "added"), [("cpu", ["--device", "cuda"]), ("cuda", [])])
def test_the_line_does_not_train_on_the_device_that_a_file_names(
    own: str, added: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'device = "{own}"\nvocab_size = 256\n')
    words = next_line(printed(file, *H100))
    understand(words)
    assert words == ["train", str(file), *added]


def without(flag: str, words: list[object]) -> list[object]:
    """`words` without a flag and its value."""
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


def test_settings_that_do_not_fit_get_those_that_do(nanogpt: Run) -> None:
    words = ("gpt2-1558m", *H100, "--activation-checkpointing", "none", "--strategy", "ddp")
    whole = ("--no-join-micro-batches", "--batch-size", 60, "--gradient-accumulation-steps", 8)
    found = planned(*words, *whole, "--gpus", 8)
    assert found["best"]["flags"]  # type: ignore[index]
    line = shlex.split(str(found["command"]))
    understand(line[1:])
    assert line.count("--activation-checkpointing") <= 1
    assert line.count("--batch-size") == 1
    # what it says to type fits as it stands
    given = line[line.index("gpt2-1558m") + 1 :]
    again = planned("gpt2-1558m", *given, *H100, "--gpus", 8)
    assert again["fits"]
    assert again["best"]["flags"] == ""  # type: ignore[index]
    assert "As set it does not fit" in printed(*words, *whole, "--gpus", 8)


def test_what_fits_nowhere_says_by_how_much_and_types_nothing() -> None:
    words = ("gpt2-1558m", *H100, "--n-layer", 400, "--n-embd", 8000, "--n-head", 50)
    found = planned(*words)
    assert not found["fits"]
    assert found["command"] is None
    assert found["best"]["room_bytes"] < 0  # type: ignore[index]
    text = printed(*words)
    assert "Nothing fits;" in text
    assert "GB are missing at least" in text
    assert "Next:" not in text
    assert "First:" not in text


@pytest.mark.parametrize(
    "words",
    [
        ("--gpus", 32, "--device", "cpu", "--memory", "24GB", "--peak", 1),
        ("--gpus", 8, "--device", "cpu", "--memory", "1GB", "--peak", 1),
        (*H100, "--memory", "8GB"),
        (*H100, "--memory", "2GB", "--gpus", 16, "--activation-checkpointing", "none"),
    ],
)
def test_what_is_missing_at_least_is_the_smallest_gap_of_all(words: tuple[object, ...]) -> None:
    found = planned("gpt2-1558m", *words)
    least = max(way["room_bytes"] for way in found["alternatives"])
    assert found["best"]["room_bytes"] == least < 0  # type: ignore[index]
    text = " ".join(printed("gpt2-1558m", *words).split())
    assert f"{-least / 1e9:,.2f} GB are missing at least" in text
    [row] = re.findall(r"→ .*? (-[\d.,]+) ", text)
    assert row == f"{least / 1e9:,.2f}"
    flags = found["best"]["flags"]  # type: ignore[index]
    assert not flags or f"at least, with {flags}: " in text
    if "cpu" in words:
        assert "--activation-checkpointing full" in flags


def test_gpus_without_one_here_are_said_to_be_cpus(nanogpt: Run) -> None:
    assert "type e.g. --device h100-80gb" in nanogpt("plan", "quickstart", "--gpus", 2).stderr
    assert not nanogpt("plan", "quickstart", "--gpus", 2, "--device", "cpu").stderr


def test_ranks_on_a_cpu_are_said_to_share_its_memory() -> None:
    place = ("--device", "cpu", "--memory", "24GB", "--peak", 1)
    assert "cpu: 24.00 GB that 8 ranks share, 3.00 GB each," in printed(*place, "--gpus", 8)
    assert "cpu: 24.00 GB, 1 TFLOP/s" in printed(*place)
    assert "share" not in printed(*H100, "--gpus", 8)


def test_every_strategy_and_checkpointing_stands_in_the_table() -> None:
    text = printed("gpt2-1558m", *H100, "--gpus", 32)
    for strategy in ("ddp", "fsdp", "hsdp 4x8"):
        for mode in ("none", "selective", "full"):
            assert re.search(rf"{strategy} +{mode} ", text)
    assert text.count("→") == 1
    assert len(printed("gpt2-1558m", *H100, "--gpus", 32, "--all").splitlines()) > len(
        text.splitlines()
    )


@pytest.mark.parametrize("asked", [("--budget", "1e19"), ("--hours", "2")])
def test_the_inverse_gives_a_size_within_what_was_asked(asked: tuple[str, str]) -> None:
    found = planned(*asked, "--gpus", 8, "--device", "a100-40gb")
    if asked[0] == "--budget":
        assert 0.9e19 < found["flops"]["model"] <= 1e19  # type: ignore[index]
    else:
        assert 0.9 * 7200 < found["time"]["total_seconds"] <= 7200 * 1.001  # type: ignore[index]
    ratio = found["compute_optimal"]["tokens_per_parameter"]  # type: ignore[index]
    assert 18 < ratio < 35
    line = shlex.split(str(found["command"]))
    understand(line[1:])
    # typed into plan itself, it comes to the same
    again = planned(*line[line.index("train") + 1 :], "--gpus", 8, "--device", "a100-40gb")
    for name in ("parameters", "tokens", "flops", "time"):
        assert again[name] == found[name]


@pytest.mark.parametrize("hours", [100, 200, 1000])
def test_hours_are_used_where_a_published_mfu_leaps_with_the_size(hours: int) -> None:
    """Of a CPU it is 4 % for the smallest models and 78 % for larger ones."""
    found = planned("--hours", hours, "--gpus", 8, "--device", "cpu", "--peak", 0.05)
    assert 0.95 * hours < found["time"]["total_seconds"] / 3600 <= hours  # type: ignore[index]


def test_an_mfu_that_is_given_and_one_that_was_measured(tmp_path: Path, nanogpt: Run) -> None:
    assert planned("gpt2-124m", *H100, "--mfu", 0.3)["mfu"]["share"] == 0.3  # type: ignore[index]
    settings = without("--eval-iters", without("--device", [*TINY]))
    bench = nanogpt(
        *("bench", "train", "quickstart", *settings, "--device", "cpu", "--updates", 3, "--json")
    ).stdout
    (tmp_path / "bench.json").write_text(bench)
    place = ("--device", "cpu", "--peak", 1, "--bench", tmp_path / "bench.json")
    once = json.loads(bench)
    found = planned("quickstart", *settings, *place)
    assert found["mfu"]["kind"] == "measured"  # type: ignore[index]
    assert found["step"]["seconds"] == pytest.approx(once["ms_per_update"] / 1e3)  # type: ignore[index]


def test_the_time_of_a_run_is_from_what_it_has_logged(trained: Path, tmp_path: Path) -> None:
    run, place = tmp_path / "a", ("--device", "cpu", "--peak", 1)
    shutil.copytree(trained, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {"loss": 5.0, "tokens_per_second": 2000.0, "memory_reserved_bytes": None}
    lines += [{"step": 9 + n, "mfu": mfu, **logged} for n, mfu in enumerate((0.2, 0.6, 0.4))]
    text = "".join(json.dumps(line) + "\n" for line in lines if line["step"] > 8)
    (run / "metrics.jsonl").write_text(text)
    found = planned(run, "--max-iters", 99, *place)
    assert (found["mfu"]["share"], found["mfu"]["kind"]) == (0.4, "measured")  # type: ignore[index]
    assert "a's last 3 logged steps: " in found["mfu"]["source"]  # type: ignore[index]
    assert found["step"]["tokens_per_second"] == pytest.approx(2000)  # type: ignore[index]
    for other in (("--mfu", 0.3), ("--dtype", "bfloat16")):
        assert planned(run, *other, *place)["mfu"]["kind"] != "measured"  # type: ignore[index]
    assert planned(run, *H100, "--peak", 60)["mfu"]["kind"] == "published"  # type: ignore[index]


def test_the_time_of_a_gpus_run_holds_for_the_same_gpu(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(trained, run)
    file = run / "config.toml"
    file.write_text(re.sub(r"(?m)^dtype = .*", 'dtype = "bfloat16"', file.read_text()))
    per_token = planned(run, *H100)["flops"]["per_token"]  # type: ignore[index]
    speed = 0.4 * 989e12 / per_token
    line = {"step": 9, "loss": 5.0, "mfu": 0.4, "tokens_per_second": speed}
    (run / "metrics.jsonl").write_text(json.dumps({**line, "memory_reserved_bytes": 9}) + "\n")
    found = planned(run, *H100)
    assert found["mfu"]["share"] == 0.4  # type: ignore[index]
    assert found["step"]["tokens_per_second"] == pytest.approx(speed)  # type: ignore[index]
    for other in ("a100-80gb", "cpu"):
        assert planned(run, "--device", other)["mfu"]["kind"] == "published"  # type: ignore[index]


def test_a_run_that_has_made_all_of_its_steps_is_not_told_to_train(trained: Path) -> None:
    text = printed(trained, "--device", "cpu", "--peak", 1)
    assert "Next:" not in text
    assert text.endswith("a has made all of its 8 steps\n")
    longer = next_line(printed(trained, "--device", "cpu", "--peak", 1, "--max-iters", 16))
    assert longer[:2] == ["train", str(trained)]


@pytest.mark.parametrize(("mfu", "is_noted"), [(1.019, True), (0.9, False)])
def test_a_measured_mfu_above_the_peak_is_noted(mfu: float, is_noted: bool, tmp_path: Path) -> None:
    bench = {"mfu": mfu, "peak_tflops": 0.1, "ms_per_update": 900.0, "first_step_seconds": 9.0}
    bench |= {"parameters": 124_373_760, "ranks": 1, "device": "cpu"}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench))
    text = printed("gpt2-124m", "--device", "cpu", "--peak", 1, "--bench", file)
    assert ("note: no MFU is above 100%" in text) == is_noted


@pytest.mark.parametrize(
    ("kind", "name", "device", "said"),
    [
        ("cuda", "NVIDIA A100-SXM4-80GB", "h100-80gb", "on a100-80gb, the plan is for h100-80gb"),
        ("cpu", "cpu", "h100-80gb", "on cpu, the plan is for h100-80gb"),
        ("cuda", "NVIDIA H100 80GB HBM3", "cpu", "on h100-80gb, the plan is for cpu"),
        ("cuda", "NVIDIA A100-SXM4-80GB", "a100-80gb", None),
        ("cuda", "A100-SXM4-80GB", "a100-80gb", None),  # as an older driver has it
        ("cuda", None, "a100-80gb", None),  # an older file
    ],
)
def test_a_bench_of_another_device_is_refused(
    kind: str, name: str | None, device: str, said: str | None, tmp_path: Path
) -> None:
    bench = {"mfu": 0.4, "peak_tflops": 312.0, "ms_per_update": 900.0, "first_step_seconds": 9.0}
    bench |= {"parameters": 124_373_760, "ranks": 1, "device": kind}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({**bench, **({"device_name": name} if name else {})}))
    words = ("gpt2-124m", "--device", device, "--peak", 312, "--bench", file)
    if said is None:
        assert str(name or "cuda") in str(planned(*words)["mfu"])
        return
    with pytest.raises(NanogptError, match=said):
        printed(*words)


def test_an_mfu_is_that_of_the_layout() -> None:
    words = ("gpt2-124m", *H100, "--mfu", 0.4)
    plain, full = (planned(*words, "--activation-checkpointing", mode) for mode in ("none", "full"))
    assert plain["mfu"]["in_this_layout"] == 0.4  # type: ignore[index]
    again = full["flops"]["hardware"] / full["flops"]["model"]  # type: ignore[index]
    assert full["mfu"]["in_this_layout"] == pytest.approx(0.4 / again, rel=1e-3)  # type: ignore[index]
    ratio = full["step"]["seconds"] / plain["step"]["seconds"]  # type: ignore[index]
    assert ratio == pytest.approx(again, rel=1e-3)
    text = printed(*words, "--activation-checkpointing", "full")
    assert "given 40.0% with recompute none (as given)" in text
    assert "at an MFU of 40.0%, given (as given)" in printed(*words)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("data/openwebtext", ["openwebtext"]),
        ("/x/openwebtext", ["openwebtext", "--out", "/x/openwebtext"]),
        ("data/python_stdlib", ["python-stdlib", "--out", "data/python_stdlib"]),
        ("data/mine", ["text", "--source", "TEXTS", "--out", "data/mine"]),
        ("data/text", ["text", "--source", "TEXTS"]),
    ],
)
def test_data_that_are_not_there_are_prepared_where_they_are_looked_for(
    dataset: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed("gpt2-124m", *H100, "--dataset", dataset)
    said = shlex.split(text[text.index("First: ") :].split("Next:")[0])
    assert said == ["First:", "nanogpt", "prepare", *words]
    understand(said[2:])


def test_offloading_says_what_the_host_needs() -> None:
    asked = ("gpt2-1558m", *H100, "--gpus", 16, "--strategy", "fsdp", "--cpu-offload")
    found = planned(*asked)
    one = 16 * 1_556_840_000  # weights, gradients and moments, over two nodes
    assert found["host_bytes"] == pytest.approx(one / 2, rel=0.01)
    assert "host         12.4" in printed(*asked)
    assert "memory of each node" in printed(*asked)
    assert planned("gpt2-124m", *H100)["host_bytes"] is None


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    text = printed("gpt2-350m", *H100, "--gpus", 16, "--plot", tmp_path / "memory.svg")
    svg = (tmp_path / "memory.svg").read_text("utf-8")
    assert svg.startswith("<?xml")
    assert "memory.svg is drawn" in text


def test_the_devices_are_listed() -> None:
    text = printed("--devices")
    assert "h100-80gb" in text
    assert "NVIDIA H100 data sheet" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "h100-8gb"], "did you mean h100-80gb?"),
        (["gpt2-125m"], "did you mean gpt2-124m?"),
        (["--gpus", "12", *H100], "add --nodes N"),
        (["--gpus", "12", "--nodes", "5", *H100], "cannot be shared by 5 nodes"),
        (["--gpus", "7", *H100], "7"),
        (["--memory", "much", *H100], "--memory 80GB"),
        (["--memory", "80", *H100], "is no memory: type e.g. --memory 80GB"),
        (["--memory", "1.2.3GB", *H100], "--memory 80GB"),
        (["--network", "fast", *H100], "400gbit"),
        (["--mfu", "0", *H100], "--mfu 0.4"),
        (["--mfu", "0.4", "--bench", "b.json", *H100], "give one of them"),
        (["--budget", "1e20", "--hours", "2", *H100], "give one of them"),
        (["--budget", "1e9", *H100], "too few"),
        (["--budget", "lots", *H100], "is no number: type e.g. --budget 1e20"),
        (["--hours", "1e-9", *H100], "1 × h100-80gb at 393 TFLOP/s, an MFU of 39.8%, are too few"),
        (["--hours", "1", "--device", "cpu", "--peak", "0.05"], "add --device h100-80gb"),
        (["--hours", "0", "--device", "cpu", "--peak", "0.05"], "give more to --hours"),
        (["--hours", "inf", *H100], "type e.g. --hours 24"),
        (["--bench", "none.json", *H100], "nanogpt bench train --json > none.json"),
        (["--dtype", "float32", *H100], "add --peak TFLOPS"),
        (["--dtype", "bfloat16", "--device", "t4"], "type --dtype float16"),
        (["--dtype", "tf32", "--device", "v100"], "v100-16gb has no tf32: type --dtype float16"),
        (["--dtype", "float32", "--device", "v100"], "or type --dtype float16"),
        (["--fp8", "--device", "a100"], "leave --fp8 out"),
        (["--fp8", "--device", "cpu", "--peak", "1"], "leave --fp8 out"),
        (["--fp8", "--n-embd", "120", "--n-head", "4", *H100], "widths that are multiples"),
        (["--strategy", "single", "--gpus", "8", *H100], "would train 8 models"),
        (["--strategy", "ddp", "--mesh", "2x4", "--gpus", "8", *H100], "--mesh needs --strategy"),
        (["--strategy", "ddp", "--cpu-offload", *H100], "--cpu-offload needs --strategy fsdp"),
        (["--mesh", "2x4", "--gpus", "720720", *H100], "give 1x720720, 2x360360"),
        (["--batch-ramp", "0:8,100:480", "--gpus", "16", *H100], "cannot share 8 sequences"),
        (["--n-layer", "0", *H100], "n_layer"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_type(words: list[str], said: str) -> None:
    with pytest.raises(NanogptError) as error:
        printed(*words)
    assert said in str(error.value)
    assert len(str(error.value)) <= MAX_LINE


def test_it_takes_every_setting_of_training_but_the_device() -> None:
    names = {name.replace("_", "-") for name in TrainConfig.model_fields} - {"device"}
    text = CliRunner().invoke(app, ["plan", "--help"], env={"COLUMNS": "400"}).stdout
    assert not [
        name for name in names if f"--{name} " not in text and f"--{name},"[:-1] not in text
    ]
