"""What a judge is asked, and what its answer says."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from data.command.errors import UserError, did_you_mean, first_line
from data.storage import sha256

FIELD = "{}"
# The paper's (ACL submission section 5 and appendix A.2, arXiv v1 appendix A.3); files of the same name.
TEMPLATES = ("dolly", "wiki")


@dataclass(frozen=True)
class Template:
    """A text with three fields {}: the prompt, the answer shown as A, the answer shown as B, in this order.

    Every other brace is text, in the template as in what is filled in.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return sha256(self.text.encode())

    def fill(self, prompt: str, a: str, b: str) -> str:
        """The question. White space around the three is left out: it could tell a judge where an answer comes from."""
        fields = (prompt.strip(), a.strip(), b.strip(), "")
        return "".join(part + field for part, field in zip(self.text.split(FIELD), fields, strict=True))


def read_template(name: str) -> Template:
    """The paper's template "dolly" or "wiki", or that of a UTF-8 file. White space at a file's end does not count.

    Raises:
        UserError: there is no such file, or it has not exactly three fields.
    """
    if name in TEMPLATES:
        text = (resources.files("evaluation.judging") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
        return Template(name, text.rstrip())
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8").rstrip()
    except (OSError, ValueError) as error:  # bad UTF-8 and a NUL in the name are ValueErrors
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"judge's template '{name}' cannot be read: {reason}.{did_you_mean(name, TEMPLATES)} Give "
            f"{' or '.join(TEMPLATES)}, or a text file."
        ) from error
    if (found := text.count(FIELD)) != 3:
        raise UserError(
            f"judge's template '{name}' has {found} fields {FIELD}; it needs three: the prompt, the answer shown as A "
            "and the answer shown as B."
        )
    return Template(name, text)


# Every rule is the same for A as for B: else pairs would drop out of a single order by who won them.
# With one of these words anywhere nothing is clear, though some such answers mean the letter that they name.
UNDECIDED = re.compile(
    r"\b(?:or|nor|not|neither|both|either|tie|tied|equal|equally|same|none|unclear|cannot|\w+n't|less|worse|worst|wrong|"
    r"incorrect(?:ly)?|inaccura\w+|irrelevant|unhelpful|misleading|false|poor(?:ly)?|vague|errors?|mistakes?|lacks?|"
    r"lacking|fails?|too|off|but|however|reject\w*)\b",
    re.IGNORECASE,
)
LONGEST_VERDICT = 10_000  # characters, after what is thought aloud; a longer one is not clear
LONGEST_LEAD = 200  # characters, so that an answer that repeats itself without end takes no time without end
LETTER = re.compile(r"(?<![\w'])[ABab](?![\w'-])")
# "A is better than Response B" names A.
OTHER = re.compile(r"\bthan\s+(?:(?:[Rr]esponse|[Cc]ontinuation|[Oo]ption|[Aa]nswer)\s+)?[AB](?![\w'-])")

# Words right behind which even a small letter names an answer; else it may be the article.
SIGNPOSTS = "response|continuation|option|answer|choice|verdict|helpful|better"
SIGNPOSTED = re.compile(rf"\b(?:{SIGNPOSTS})\W{{1,6}}\Z", re.IGNORECASE)
# What may stand before a letter: from the beginning of the text, a sentence, a line or a reason no words but these. A
# line that ends with a colon goes on in the next one.
LEADS = (
    f"{SIGNPOSTS}|i|d|ll|would|will|say|think|believe|choose|pick|select|prefer|vote|go|with|for|my|the|final|preference|"
    "decision|winner|more|best|preferred|superior|one|which|that|is|be|it|s|so|thus|therefore|overall|in|opinion|view|"
    "boxed|clearly|definitely|certainly"
)
IN_FRONT = re.compile(rf"(?:\A|[.!?]\s|(?<!:)\n|\b(?:because|since|as)\b)\W*(?:(?:{LEADS})\b\W+)*\Z", re.IGNORECASE)

# What may stand behind a letter: nothing, a sign with a reason behind it, or praise from these lists.
# Exchanging A and B turns the article into "b", so that must do as well.
ARTICLE = r"(?:(?:[ab]|an|the|my)\s+)?"
DEGREES = (
    r"(?:(?:much|far|by far|slightly|[ab] bit|[ab] little|somewhat|even|also|still|just|significantly|considerably|"
    r"generally|overall|clearly|definitely|certainly|arguably|likely|probably)\s+){0,3}"
)
STATES = r"(?:is|was|seems|appears|looks|sounds|feels|reads)(?:\s+to\s+be)?|would\s+be"
DEEDS = (
    "provides|gives|offers|has|contains|includes|adds|presents|delivers|shows|makes|answers|addresses|explains|describes|"
    "responds|fits|matches|flows|continues|completes|reads|would help|helps"
)
QUALITIES = (
    "helpful|useful|informative|detailed|thorough|complete|comprehensive|full|in-depth|accurate|correct|precise|concise|"
    "clear|coherent|logical|consistent|natural|naturally|smoothly|fluent|fitting|appropriate|suitable|convincing|"
    "engaging|interesting|practical|nuanced|balanced|readable"
)
# Praise only with "more" in front: an error may be factual or specific.
FACETS = "detail|details|relevant|factual|specific|direct|sense|information"
BETTER = (
    r"better|best|preferable|preferred|superior|stronger|strongest|clearer|winner|"
    rf"(?:more|most)(?:\s+(?:{QUALITIES}|{FACETS})|(?=\W*\Z))"
)
PRAISE = (
    rf"{DEGREES}(?:{STATES})\s+{DEGREES}{ARTICLE}{DEGREES}(?:{BETTER})"
    rf"|{DEGREES}(?:{DEEDS})\s+{ARTICLE}{DEGREES}(?:{BETTER}|{QUALITIES}|question|query|prompt)"
    r"|(?:better|best|clearly|correctly|directly|fully|accurately)\s+(?:answers|addresses|explains|describes)"
    r"|wins|(?:more helpful|better)(?=\W*\Z)"
    r"|because|since|as|for its|due to|in my|over|by far|though|although"
)
BEHIND = re.compile(
    rf"[\"\u201d\])}}]{{0,8}}(?:\W{{0,8}}\Z|[.:;!]|\)\s+(?-i:[A-Z])|\s+[(\u2013\u2014-]|\n|,?\s+(?:{PRAISE})(?![\w'-]))",
    re.IGNORECASE,
)


def parse_verdict(answer: str) -> str:
    """ "A", "B", or "?" where the answer does not clearly name one of them.

    The rule: what is thought aloud before </think> does not count. Without signs and white space the answer may be the
    letter alone, in any case. Else it must name one letter, and not both: a capital that stands alone, or a small one
    right behind a word such as "answer". Wherever that letter stands there must be none but words such as "I prefer" in
    front of it, and behind it nothing, a sign such as a full stop, or praise such as "is better" or "because". With a
    word such as "or", "not" or "wrong" nothing is clear, nor is an answer that is longer than LONGEST_VERDICT. What it
    is said to be better than is not named. With A and B exchanged every answer gives the other one.
    """
    said = answer.rpartition("</think>")[2].replace("\u2019", "'")
    if len(said) > LONGEST_VERDICT or "<think>" in said:  # the latter was cut before it came to an answer
        return "?"
    alone = re.sub(r"[\W_]+", "", said)
    if alone in ("A", "a", "B", "b"):
        return alone.upper()
    if UNDECIDED.search(said):
        return "?"
    said = re.sub(r"[*_`]+|</?\w+>", "", said)  # Markdown, tags
    said = re.sub(r"[^\S\n]+", " ", said.strip())
    said = OTHER.sub("than", re.sub(r" ?\n[ \n]*", "\n", said))
    named: set[str] = set()
    for found in LETTER.finditer(said):
        before = (said, max(0, found.start() - LONGEST_LEAD), found.start())
        if found[0].islower() and not SIGNPOSTED.search(*before):
            continue
        if not (IN_FRONT.search(*before) and BEHIND.match(said, found.end())):
            return "?"
        named.add(found[0].upper())
    return named.pop() if len(named) == 1 else "?"
