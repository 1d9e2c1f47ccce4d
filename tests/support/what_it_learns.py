"""The figure and the numbers of docs/what-it-learns.md: `python -m tests.support.what_it_learns`.

Every point is a run of the trainer as in tests/trainer/test_optimum.py: an epoch over groups that were drawn and are
seen once, in the world of `tests.support.enumerable`.
"""

import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.report.plots import DARK, LIGHT
from tests.support.commands import ROOT
from tests.support.enumerable import (
    covariances,
    distribution_by,
    exponent_error,
    exponent_of,
    marginal,
    mass,
    tilted,
    top_k_of,
)
from tests.support.enumerable_runs import BATCH, REFERENCE, TRUTH, DrawnGroups, draw, learned, spread, trained
from trainer.ensemble.interpolate import interpolate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = ROOT / "docs/what-it-learns.svg"
PAPER = ("#ffffff", "#14181c")  # light, dark
GROUPS = 12_288
BETAS = (0.5, 1.0, 2.0, 5.0)
ROUNDS_BETA, ROUNDS = 5.0, 5
TOP_K = 3
ALPHAS = (0.0, 0.1, 0.3, 0.6, 1.0)


def exponents() -> tuple[list[float], list[float], dict[float, Any]]:
    """How far each beta went, measured; the standard errors of an exact minimiser of the groups; the models."""
    groups = fresh(1, REFERENCE, 4)
    models = {beta: trained(REFERENCE, groups, beta) for beta in BETAS}
    found = [exponent_of(distribution_by(model), REFERENCE, TRUTH) for model in models.values()]
    drawn, odds = groups.drawn, TRUTH - REFERENCE
    errors = [
        exponent_error(
            covariances(drawn.prefixes, drawn.candidates, odds, tilted(REFERENCE, TRUTH, 1 / beta), beta),
            REFERENCE,
            TRUTH,
        )
        for beta in BETAS
    ]
    return found, errors, models


def fresh(seed: int, negatives: np.ndarray, candidates: int, reference: np.ndarray = REFERENCE) -> DrawnGroups:
    """Groups of a run, negatives drawn from a distribution."""
    return DrawnGroups(draw(seed, GROUPS, TRUTH, negatives, candidates), reference)


def rounds() -> list[float]:
    """How far the policy is after no round, one, two ..."""
    policy, found = REFERENCE, [0.0]
    for t in range(ROUNDS):
        policy = learned(trained(policy, fresh(10 + t, policy, 4, policy), ROUNDS_BETA))
        found.append(exponent_of(policy, REFERENCE, TRUTH))
    return found


def ensembles(cpo: Any) -> list[float]:
    """The exponent of ensembles of a model trained by MLE and one trained by CPO."""
    mle = trained(REFERENCE, fresh(1, REFERENCE, 1), 1.0, "mle")
    found, mixed = [], trained(REFERENCE, fresh(1, REFERENCE, 1), 1.0, "mle")
    for alpha in ALPHAS:
        mixed.table.data = interpolate(mle.table.data, cpo.table.data, alpha)
        found.append(exponent_of(distribution_by(mixed), REFERENCE, TRUTH))
    return found


def out_of_reach(k: int) -> tuple[list[int], list[float]]:
    """Groups seen so far, and the policy's mass on what top-k never samples."""
    reach = top_k_of(REFERENCE, TOP_K)
    outside, seen, found = np.isneginf(reach), [0], [mass(REFERENCE, np.isneginf(reach))]

    def watch(step: int, policy: np.ndarray) -> None:
        if step % 8 == 0:
            seen.append(step * BATCH)
            found.append(mass(policy, outside))

    trained(REFERENCE, fresh(20, reach if k else REFERENCE, 4), 1.0, watch=watch)
    return seen, found


def qualities(policy: np.ndarray) -> tuple[float, float]:
    """Relevance, the mean of PMI with the prefix over a policy's own responses, and reverse KL to the truth; nats."""
    p = np.exp(policy)
    relevance = (p * (TRUTH - marginal(TRUTH))).sum(axis=1).mean()
    return float(relevance), float((p * (policy - TRUTH)).sum(axis=1).mean())


def taught() -> dict[str, tuple[float, float]]:
    """What AN and BN teach at beta 1: `qualities` of each."""
    an = learned(trained(REFERENCE, fresh(1, REFERENCE, 4), 1.0))
    bn = learned(trained(REFERENCE, fresh(2, marginal(TRUTH), 4), 1.0))
    policies = {"reference": REFERENCE, "AN": an, "BN": bn, "ground truths": TRUTH}
    return {name: qualities(policy) for name, policy in policies.items()}


def measured() -> dict[str, Any]:
    """All that the figure shows and the page says."""
    by_beta, errors, models = exponents()
    return {
        "exponents": by_beta,
        "errors": errors,
        "rounds": rounds(),
        "ensembles": ensembles(models[5.0]),
        "reach": {k: out_of_reach(k) for k in (0, TOP_K)},
        "taught": taught(),
        "spread": {number: spread(number)[:2] for number in (2, 8)},
    }


def draw_betas(axes: "Axes", found: dict[str, Any], colours: Sequence[str]) -> None:
    line = np.linspace(0, 2.1, 2)
    axes.plot(line, line, color=colours[0], label="theory: 1/β")
    axes.plot([1 / beta for beta in BETAS], found["exponents"], "o", color=colours[1], label="CPO, measured")
    for beta, exponent in zip(BETAS, found["exponents"], strict=True):
        axes.annotate(f"β = {beta:g}", (1 / beta, exponent), xytext=(8, -10), textcoords="offset points")
    axes.set(title="β says how far it goes", xlabel="1/β", ylabel="share of the way to the truth (log)")
    axes.legend(loc="upper left")


def draw_rounds(axes: "Axes", found: dict[str, Any], colours: Sequence[str]) -> None:
    t = np.arange(ROUNDS + 1)
    axes.plot(t, 1 - (1 - 1 / ROUNDS_BETA) ** t, color=colours[0], label=f"theory: 1 - (1 - 1/{ROUNDS_BETA:g})ᵗ")
    axes.plot(t, found["rounds"], "o", color=colours[1], label=f"β = {ROUNDS_BETA:g}, measured")
    axes.set(title="Rounds go on", xlabel="rounds t, each from the last policy", ylabel="share of the way", ylim=(0, 1))
    axes.legend(loc="upper left")


def draw_taught(axes: "Axes", found: dict[str, Any], colours: Sequence[str]) -> None:
    names = list(found["taught"])
    for index, label in enumerate(("relevance: PMI with the prefix", "distance: reverse KL to the truth")):
        values = [found["taught"][name][index] for name in names]
        bars = axes.barh(np.arange(len(names)) + 0.4 * index - 0.2, values, 0.36, color=colours[index], label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="AN teaches the distribution, BN relevance (β = 1)", xlabel="nats", xlim=(-0.35, 0.75))
    axes.set_ylim(4.5, -0.6)  # the first on top, and room for the legend
    axes.axvline(0, linewidth=0.8, color=LIGHT[1])
    axes.legend(loc="lower right")


def draw_reach(axes: "Axes", found: dict[str, Any], colours: Sequence[str]) -> None:
    outside = np.isneginf(top_k_of(REFERENCE, TOP_K))
    axes.axhline(mass(TRUTH, outside), color=colours[0], label="of the ground truths")
    for index, (k, (seen, masses)) in enumerate(found["reach"].items(), start=1):
        axes.plot(seen, masses, "o-", markersize=3, color=colours[index], label=f"CPO, top_k = {k}")
    axes.set(
        title="With top-k, mass leaves for what is out of reach",
        xlabel="groups seen (β = 1)", ylabel="share of such responses", ylim=(0, 1),
    )  # fmt: skip
    axes.legend(loc="center right")


PANELS: tuple[Callable[..., None], ...] = (draw_betas, draw_rounds, draw_taught, draw_reach)


def drawn(found: dict[str, Any]) -> str:
    """The figure as SVG, on its own paper, in other colours where the reader's page is dark."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, grid, *colours = LIGHT
    inked = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink)
    style: Any = {
        **inked, "axes.edgecolor": grid, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "axes.titlesize": 11, "axes.titlelocation": "left", "font.size": 9.5, "svg.hashsalt": "what it learns",
    }  # fmt: skip
    with matplotlib.rc_context(), BytesIO() as image:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(9.6, 7.0), layout="constrained", facecolor=PAPER[0])
        for axes, draw_panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            axes.set_facecolor("none")
            draw_panel(axes, found, colours)
        figure.savefig(image, format="svg", backend="svg", metadata={"Date": None})
        text = image.getvalue().decode()
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in zip((PAPER[0], *LIGHT), (PAPER[1], *DARK), strict=True)
        for what in ("fill", "stroke")
    ]
    return text.replace("<defs>", f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>\n <defs>", 1)


def main() -> None:
    found = measured()
    FIGURE.write_text(drawn(found))
    by_beta = zip(BETAS, found["exponents"], found["errors"], strict=True)
    print("exponent of CPO, standard error:", {beta: (round(e, 3), round(error, 3)) for beta, e, error in by_beta})
    print("after rounds:", [round(e, 3) for e in found["rounds"]])
    two, eight = (found["spread"][number] for number in (2, 8))
    print("variance, K = 2 over K = 8:", round(two[0] / eight[0], 2), "theory", round(two[1] / eight[1], 2))
    print("of ensembles:", {alpha: round(e, 3) for alpha, e in zip(ALPHAS, found["ensembles"], strict=True)})
    print("out of reach:", {k: round(masses[-1], 3) for k, (_, masses) in found["reach"].items()})
    print("relevance, reverse KL:", {n: tuple(round(v, 3) for v in values) for n, values in found["taught"].items()})


if __name__ == "__main__":
    sys.exit(main())
