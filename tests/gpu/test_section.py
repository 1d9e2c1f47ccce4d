"""The Markdown of a record: tables, and that what is of one machine never stands among another's."""

from typing import Any

from tests.gpu.section import section

GPU = {
    "kind": "cuda", "device": "NVIDIA H200", "driver": "580.1", "gibibytes": 139.7, "python": "3.12.3",
    "versions": {"torch": "2.11.0"}, "extent": "whole", "commit": "abc1234", "sources": "0123456789ab",
}  # fmt: skip
CPU = {**GPU, "kind": "cpu", "device": "CPU (x86_64)", "driver": "", "gibibytes": None, "extent": "small"}


def part(on: dict[str, Any], outcome: str = "passed", **more: Any) -> dict[str, Any]:
    return {"outcome": outcome, "on": on, "at": "2026-12-01 10:00", "seconds": 41.6, **more}


def step(method: str, groups: int, seconds: float, **more: Any) -> dict[str, Any]:
    found = {
        "size": "3B", "method": method, "seconds": seconds, "groups": groups, "tokens": 16000,
        "groups_per_second": groups / seconds, "tokens_per_second": 16000 / seconds, "tflop_per_second": 400.0,
        "mfu": 0.404, "peak_bytes": 50 * 2**30, "predicted_bytes": None, "prediction": "not available",
    }  # fmt: skip
    return {"steps": [{**found, **more}]}


def test_a_gpus_section_says_what_the_figures_are_of() -> None:
    lines = section({"cpo-3B": part(GPU, result=step("cpo", 16, 0.5))}).splitlines()
    assert lines[0] == "## On a GPU: NVIDIA H200"
    assert lines[2] == (
        "`python -m tests.gpu.prove` (`make gpu`), 2026-12-01, commit abc1234 (sources 0123456789ab): NVIDIA H200, "
        "140 GiB, driver 580.1, Python 3.12.3, torch 2.11.0."
    )
    assert "| `cpo-3B` | passed | 42 s |  |" in lines


def test_commits_of_the_same_sources_share_a_section() -> None:
    page = section(
        {"flex": part(GPU), "cpo-3B": part({**GPU, "commit": "def5678"}), "an": part({**GPU, "sources": "f"})}
    )
    assert page.count("## On a GPU: NVIDIA H200\n") == 2
    assert "commit abc1234 and def5678 (sources 0123456789ab)" in page


def test_steps_of_one_model_are_compared_with_ours() -> None:
    record = {
        "cpo-3B": part(GPU, result=step("cpo", 16, 0.5, predicted_bytes=48 * 2**30, prediction="")),
        "mle-3B": part(GPU, result=step("mle", 96, 0.4)),
        "dpo-3B": part(GPU, result=step("dpo", 16, 1.5, mfu=None, prediction="")),
    }
    page = section(record)
    assert "| 3B | CPO, packed | 32.0 | 32,000 | 40.4% | 50.00 | 48.00 |  |" in page
    assert "| 3B | MLE, packed | 240.0 | 40,000 | 40.4% | 50.00 | not available |  |" in page
    assert "| 3B | TRL's DPO, pairs | 10.7 | 10,667 |  | 50.00 |  | 3.00 x |" in page
    assert "Medians of 5 steps after 3" in page


def test_a_cpus_figures_never_stand_among_a_gpus() -> None:
    record = {
        "cpo-3B": part(GPU, result=step("cpo", 16, 0.5)),
        "dpo-3B": part(CPU, result=step("dpo", 2, 1.0, mfu=None, peak_bytes=None)),
    }
    gpu, cpu = section(record).split("## Not a GPU: the program tried on a CPU, in small\n")
    assert "TRL's DPO" not in gpu.partition("| model |")[2]
    assert "CPO, packed |" not in cpu.partition("| model |")[2].partition("\n")[2]
    assert "No figure here is a GPU's" in cpu
    assert "Medians of 5" not in cpu


def test_of_each_kind_of_figure_the_worst_is_shown() -> None:
    checks = [
        {"what": "gpt2, blocks: gradient", "value": 1e-5, "sense": "at most", "bound": 1e-3, "holds": True},
        {"what": "llama, dense: gradient", "value": 2e-5, "sense": "at most", "bound": 1e-3, "holds": True},
        {"what": "llama, dense: value", "value": None, "sense": "at most", "bound": 1e-3, "holds": False},
        {"what": "AN stage: of vLLM", "value": 1.01, "sense": "at least", "bound": 0.95, "holds": True},
        {"what": "again: of vLLM", "value": 0.97, "sense": "at least", "bound": 0.95, "holds": True},
    ]
    rows = [line for line in section({"parity": part(GPU, result={"checks": checks})}).splitlines() if "| at " in line]
    assert rows == [
        "| `parity` | gradient | 2e-05 | llama, dense | at most 0.001 |",
        "| `parity` | value | not finite | llama, dense | at most 0.001: **beyond** |",
        "| `parity` | of vLLM | 0.97 | again | at least 0.95 |",
    ]


def test_attention_and_sampling_have_tables() -> None:
    attention = {
        "heads": 32, "key_heads": 8, "head_size": 128, "tokens": 4096, "blocks_seconds": 2e-3, "dense_seconds": 1e-2,
    }  # fmt: skip
    sampled = [
        {"name": "AN stage", "tokens_per_second": 990.0, "least": 980.0, "most": 1000.0},
        {"name": "bare vLLM", "tokens_per_second": 1000.0, "least": 990.0, "most": 1010.0},
    ]
    result = {"attention": [attention], "sampling": sampled, "prompts": 384, "n": 11, "max_tokens": 128}
    page = section({"an": part(GPU, result=result)})
    assert "| 32 heads of 128, 8 of keys | 4,096 | 2.00 ms | 10.00 ms | 5.00 x |" in page
    assert "| 384 prompts, n = 11, at most 128 tokens | tokens/s | AN stage is |" in page
    assert "| bare vLLM | 1,000 (990 to 1,010) | 0.99 x |" in page
