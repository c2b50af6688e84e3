"""An answer and its reference in, HTML out that marks where they part: what is missing and what is too much."""

from difflib import SequenceMatcher

from markupsafe import Markup, escape

from tasks.evaluation.segmentation import pieces

LONGEST = 1500  # Pieces; beyond, the comparison takes seconds a row and a reader sees nothing in it.


def marked(answer: str, reference: str) -> Markup:
    """The answer, `<ins>` around what the reference has not, `<del>` around what only the reference has.

    >>> str(marked("退款 now", "退货 now"))
    '退<del>货</del><ins>款</ins> now'
    """
    given, wanted = pieces(answer), pieces(reference)
    if len(given) > LONGEST or len(wanted) > LONGEST:
        return escape(answer)
    matcher = SequenceMatcher(None, wanted, given, autojunk=False)
    if answer and matcher.ratio() < 0.15:
        # Nothing in common but a comma or two: marks would only make both unreadable.
        return Markup("<ins>{}</ins>").format(answer)
    parts = []
    for kind, wanted_from, wanted_to, given_from, given_to in matcher.get_opcodes():
        kept, missing = "".join(given[given_from:given_to]), "".join(wanted[wanted_from:wanted_to])
        if kind == "equal":
            parts.append(escape(kept))
            continue
        parts += [Markup("<del>{}</del>").format(missing)] * bool(missing)
        parts += [Markup("<ins>{}</ins>").format(kept)] * bool(kept)
    return Markup("").join(parts)
