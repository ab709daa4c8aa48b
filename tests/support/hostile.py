"""Names that attack the program which shows them; every output is tested with all of them."""

HOSTILE_NAMES = (
    "a\x1b]0;owned\x07b",  # title of the terminal's window
    "a\x1b[2J\x1b[31mb",  # clears the screen
    "a\x9b31mb",  # the same start of a sequence in one character
    "a\rb",  # overwrites the line
    "a\x08\x08b",
    "a\u202egnp.b",  # reads backwards
    "a\u2028b",
    "a\nerror: b",  # a line that the program did not write
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "[text](javascript:alert(1))",
    "a|b|c",
    "`code`<b>",
    "# heading",
    "=HYPERLINK(1)",
    "a: b #c",
    "$\\frac{a$",
    'a"b\\c',
    "%s%n{0}",
    "../../etc/passwd",
)
CONTROLS = "".join({character for name in HOSTILE_NAMES for character in name if not character.isprintable()} - {"\n"})
