"""What a judge is asked, and what its answer says."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from data.errors import UserError, did_you_mean, first_line
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
        text = (resources.files("evaluation") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
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


# Words after which a letter names an answer, whatever follows.
NOUNS = "response|continuation|option"
# Words after which even a small "a" names an answer, not an article.
LEADS = f"{NOUNS}|answer|choice|verdict|helpful|better"
# Words that may follow a capital A which names an answer; after an article comes another word.
LINKS = "is|was|has|because|since|as|seems"
UNDECIDED = re.compile(
    r"\b(?:or|nor|not|neither|both|either|tie|tied|equal|equally|same|none|unclear|cannot|worse|less|\w+n't)\b",
    re.IGNORECASE,
)
LETTER = re.compile(rf"(?:\b(?P<lead>(?i:{LEADS}))(?P<gap>\W{{1,6}}))?(?<![\w'])(?P<letter>[ABab])(?![\w'-])")
ARTICLE = re.compile(rf"[ \t]+(?!(?:{LINKS})\b)[a-z]")


def parse_verdict(answer: str) -> str:
    """ "A", "B", or "?" where the answer does not clearly name one of them.

    The rule: what is thought aloud before </think> does not count. Without signs and white space the answer may be the
    letter alone, in any case. Else one letter must stand alone in the text, and not both: a capital, or a small one
    that is "b" or follows a word such as "answer" ("a" could be an article). A capital A before another word, as in
    "A good question", must follow "response", "continuation" or "option". With a word such as "or", "not" or "both"
    nothing is clear.
    """
    said = answer.rpartition("</think>")[2].replace("\u2019", "'")
    if "<think>" in said:  # cut before it came to an answer
        return "?"
    alone = re.sub(r"[\W_]+", "", said)
    if alone in ("A", "a", "B", "b"):
        return alone.upper()
    if UNDECIDED.search(said):
        return "?"
    said = re.sub(r"[*_`]+|</?\w+>", "", said)  # Markdown, tags
    named: set[str] = set()
    for found in LETTER.finditer(said):
        lead, letter = (found["lead"] or "").lower(), found["letter"]
        if letter == "a" and not lead:
            continue
        sure = lead in NOUNS.split("|") and found["gap"] == " "
        if letter in "aA" and not sure and ARTICLE.match(said, found.end()):
            return "?"
        named.add(letter.upper())
    return named.pop() if len(named) == 1 else "?"
