"""What was measured of each method in, docs/methods.md and its plot out."""

import io
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.gpu.page import Results
    from benchmarks.methods.__main__ import Measured

MIB = 1 << 20
HEAD = """# The methods

What `training.method` can be, what each costs, and what it gave on the same records. Every method goes through the same
seven steps; only what moves is different.

| method | `type` | what moves | where to start |
| --- | --- | --- | --- |
| Full fine-tuning | `full` | every weight | learning rate 5e-5; 16 bytes a parameter |
| LoRA | `lora` | low-rank updates beside frozen weights | rank 16, alpha 32, `all-linear`; the guide: 8, 16, dropout 0.1 on q and v |
| DoRA | `lora` with `dora: true` | size and direction of the updates apart | low ranks; slower |
| rsLoRA | `lora` with `rslora: true` | as LoRA, scaled by alpha / √rank | ranks above 32 |
| PiSSA | `lora` with `initialisation: pissa` | as LoRA, from the weights' largest directions | saved as a plain LoRA of twice the rank |
| QLoRA | `qlora` | LoRA on a base in 4 bits (NF4, quantised twice) | the guide: rank 16, alpha 32 on q, k, v, o |
| 8-bit LoRA | `lora_8bit` | LoRA on a base in 8 bits | the guide: rank 8, alpha 16, dropout 0.1 on q and v |
| IA3 | `ia3` | a factor a channel of keys, values, feed-forward | high learning rates; few parameters |
| Prompt tuning | `prompt_tuning` | vectors read before the prompt | high learning rates, many steps |
| Prefix tuning | `prefix_tuning` | keys and values before the prompt, in every layer | as prompt tuning |
| P-tuning | `p_tuning` | a small network that makes the vectors | as prompt tuning |
| LLaMA-Adapter | `adaption_prompt` | gated prompts in each layer; the guide's "adapter" in PEFT's terms | Llama and Mistral shapes |
| any other PEFT type | `peft` with `peft_type` and `options` | what PEFT says; options are checked against its own class | LOHA, LOKR, OFT, VERA, FOURIERFT, HRA, MISS, LN_TUNING |
| Combination | `combine` | nothing: adapters of one base put together | `linear`, `svd`, `ties`, `dare_ties` |
| Chosen by memory | `auto` | the first that fits: full, LoRA, 8-bit, QLoRA, prompt tuning | `tuneline plan RECIPE` shows the table |

A quantised base needs bitsandbytes, which runs 4 and 8 bits on a processor too, slower than fp32. Prompt tuning, prefix
tuning, P-tuning and LLaMA-Adapter cannot be folded into a base; their versions are adapters, also under the model's own
name, so that `models:/<name>@production` always answers.

What each takes on a machine of yours, before anything is loaded: `tuneline plan RECIPE`. Predictions for a 7B base stand beside
published figures in [0014](decisions/0014-predicting-memory.md).
"""
MEASURED = """
## Measured

SmolLM2-135M-Instruct, {rows} records of the quickstart, one pass of {steps} steps in fp32 on two CPU cores, asked {asked}
test rows; exact match with its 95 % interval (the base has {base:.3f}). One learning rate each, none searched for: the
costs compare, and the scores say what a minute or two of each method gives, not what it can reach; soft prompts need
many more steps than low-rank updates. Memory is the most the training process held, with about 0.6 GB of it Python,
torch and the libraries. Made by `python -m benchmarks.methods`; the records are those of the commit that last wrote
`benchmarks/results/methods.json`.

| method | learning rate | trained parameters | peak memory, MiB | tokens/s | saved, MiB | exact match | merged by | mean KL | equal answers |
| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: |
"""
MERGES = """
## Merging what was trained on a quantised base

Candidates on validation prompts, against base plus adapter as it was trained. The one in bold was saved;
where none is, even the nearest broke a bound and the adapter stays on its quantised base. `requantised`
is for information: it needs bitsandbytes wherever it is loaded, and in 4 bits most of an update is smaller than half a
step of the grid that the base's weights already lie on, so that rounding takes it away again.

| method | rule | mean KL | max KL | equal top-1 | equal answers | exact match |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""

GPU = """
## On a GPU

{device}. {tables}
Random weights make a quantised base and the full-precision one two different models; a trained one is far nearer to
itself (above). They are also why 8-bit LoRA of 7B took more than predicted: the 8-bit product keeps every input column
with a number above 6 in 16 bits besides. That is one in a thousand in trained models (LLM.int8, arXiv:2208.07339), and
nearly every one before the last product of each layer here. Steps of {tokens:,} tokens leave a large GPU waiting for
Python, so the speeds compare methods, not machines: raise `training.batch_tokens` as far as memory allows.
"""


def page(found: Mapping[str, "Measured"], rows: int, asked: int, gpu: "Results | None" = None) -> str:
    """The whole page; methods without a measurement are left out of the tables."""
    on_gpu = GPU.format(device=gpu.device, tables=gpu.tables(), tokens=gpu.load.tokens) if gpu else ""
    if not found:
        return HEAD + on_gpu
    first = next(iter(found.values()))
    head = MEASURED.format(rows=rows, steps=first.steps, asked=asked, base=first.base.mean)
    table = "\n".join(_row(name, one) for name, one in found.items())
    merges = "\n".join(line for name, one in found.items() for line in _candidates(name, one))
    plotted = "\n\n![Exact match against trained parameters](screenshots/methods.svg)\n"
    return HEAD + head + table + plotted + (MERGES + merges + "\n" if merges else "") + on_gpu


def _row(name: str, one: "Measured") -> str:
    score = f"{one.score.mean:.3f} [{one.score.low:.3f}, {one.score.high:.3f}]"
    how = one.rule or {"full": "its own weights", "adapter": "stays an adapter"}.get(one.kind, one.kind)
    proof = f"{one.parity.mean_kl:.1e} | {one.parity.answer_agreement:.0%}" if one.parity else "| "
    return (
        f"| {name} | {one.learning_rate:.0e} | {one.trainable:,} | {one.peak_memory / MIB:,.0f} | "
        f"{one.tokens_per_second:,.0f} | {one.saved / MIB:,.1f} | {score} | {how} | {proof} |"
    )


def _candidates(name: str, one: "Measured") -> list[str]:
    return [
        f"| {name} | {f'**{each.rule}**' if each.saved else each.rule} | {each.parity.mean_kl:.1e} | "
        f"{each.parity.max_kl:.1e} | {each.parity.top1_agreement:.2%} | {each.parity.answer_agreement:.0%} | "
        f"{each.score:.3f} |"
        for each in (one.candidates if len(one.candidates) > 1 else [])
    ]


def plot(found: Mapping[str, "Measured"]) -> str:
    """Exact match against trained parameters, an SVG; the circle's size is the peak memory."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    # Without a date and with fixed ids, the same measurements draw the same file.
    with plt.rc_context({"svg.hashsalt": "methods", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(8, 4.6))
        for one in found.values():
            low, high = one.score.mean - one.score.low, one.score.high - one.score.mean
            axes.errorbar(one.trainable, one.score.mean, yerr=[[low], [high]], color="#8aa", lw=1, zorder=1)
            axes.scatter(one.trainable, one.score.mean, s=one.peak_memory / 2e7, color="#27c", alpha=0.6, zorder=2)
        axes.set(xscale="log", ylim=(-0.03, 1.0), xlabel="trained parameters", ylabel="exact match, 95 % interval")
        axes.set_title("Circle: peak memory of the training process", fontsize=9)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        _label(axes, found)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    return drawn.getvalue()


def _label(axes: "Axes", found: Mapping[str, "Measured"]) -> None:
    """One name for methods on the same spot, each where it covers no other."""
    from matplotlib.transforms import Bbox

    places: dict[tuple[int, float], list[str]] = {}
    for name, one in found.items():
        places.setdefault((one.trainable, one.score.mean), []).append(name)
    points = [axes.transData.transform(place) for place in places]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    for place, names in sorted(places.items(), reverse=True):
        for height, side in itertools.product((5, -11, 16, -22, 27, -33), ("left", "right")):
            across = 6 if side == "left" else -6
            label = axes.annotate(
                ", ".join(names), place, xytext=(across, height), textcoords="offset points", horizontalalignment=side
            )
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        taken.append(box)
