"""What is planted. An operator finds sites in a file: a range of the text, and what stands there instead."""
import collections
import re

# The range [start, end) of the text becomes `text`; a statement's becomes nothing. `constant`: seen by the compiler alone.
Mutant = collections.namedtuple("Mutant", "file line operator start end text original statement constant")

COMPARISON = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
SIGN = {"+": "-", "-": "+", "+=": "-=", "-=": "+="}
DROPPED = {"+", "-", "*", "/", "%", "&&", "||", "&", "|", "<<", ">>"}
SAME_EITHER_WAY = {"min", "max", "gcd", "lcm", "hypot", "swap", "add", "equal"}  # of their arguments' order
NO_CALL = {"if", "for", "while", "switch", "catch", "return", "sizeof", "alignof", "decltype", "static_assert", "throw",
           "noexcept", "requires", "constexpr", "defined", "GPTQ_INLINE", "operator", "explicit", "and", "or", "not",
           "__attribute__", "asm", "alignas", "new", "delete"}
CHECK = re.compile(r"^(check|require|expect|refuse|reject|fail|throw|validate|verify)(_|$)|^assert$")
INTEGER = re.compile(r"^(0[xX][0-9a-fA-F']+|[0-9][0-9']*)([uUlLzZ]*)$")


def operators(source, words=False):
    """All sites of a file, in order; words: those of messages too."""
    tokens = source.tokens
    hidden, constant = source.hidden, source.constant

    def make(operator, first, last, text, statement=False):
        start, end = tokens[first].start, tokens[last].end
        return Mutant(source.path, source.line(tokens[first].start), operator, start, end, text, source.text[start:end],
                      statement, first in constant or last in constant)

    def of_text(first, last):
        """Sums of texts are no arithmetic."""
        return any(tokens[j].kind == "string" or tokens[j].text in ("to_string", "string", "name", "message", "dump", "what")
                   for j in range(first, last + 1))

    def swap(first, last, i, operator):
        return source.between(first, i - 1) + f" {operator} " + source.between(i + 1, last)

    for i, t in enumerate(tokens):
        if i in hidden:
            continue
        before = tokens[i - 1] if i else None
        binary = source.binary(i) is not None
        # ---- comparison, sign, dropped_term: operations of two operands ----
        if binary and (t.text in COMPARISON or t.text in SIGN or t.text in DROPPED):
            extent = source.operands(i)
            if extent:
                first, last = extent
                words_here = t.text in "+-" and of_text(first, last)
                declaration = t.text in ("&", "*", "&&") and before is not None and before.text in ("const", "auto", ">")
                if t.text in COMPARISON:
                    yield make("comparison", first, last, swap(first, last, i, COMPARISON[t.text]))
                if t.text in SIGN and not words_here:
                    yield make("sign", first, last, swap(first, last, i, SIGN[t.text]))
                if t.text in DROPPED and not words_here and not declaration and not of_stream(source, first, last, t):
                    keep = source.between(first, i - 1)
                    drop = source.between(i + 1, last)
                    if t.text in ("&&", "||"):
                        keep, drop = f"static_cast<bool>({keep})", f"static_cast<bool>({drop})"
                    yield make("dropped_term", first, last, keep)
                    if t.text in ("+", "*", "&&", "||", "&", "|"):
                        yield make("dropped_term", first, last, drop)
        elif t.text in ("+=", "-=") and t.spaced:
            extent = source.operands(i, assignment=True)
            if extent and not of_text(*extent):
                first, last = extent
                yield make("sign", first, last, swap(first, last, i, SIGN[t.text]))
        elif t.text == "-" and not t.spaced and before is not None and i + 1 < len(tokens) and \
                (before.text in "([{,=?:<" or before.text in ("return", "==", "<=", ">=", "!=", "&&", "||") or
                 source.binary(i - 1) is not None) and tokens[i + 1].kind != "mark" or \
                t.text == "-" and not t.spaced and i + 1 < len(tokens) and tokens[i + 1].text == "(" and \
                before is not None and (before.text in "([{,=?:" or before.text == "return" or source.binary(i - 1) is not None):
            last = source.chain_end(i + 1)
            yield make("sign", i, last, source.between(i + 1, last))
        # ---- off_by_one: whole numbers ----
        if t.kind == "number":
            found = INTEGER.match(t.text)
            if found and (before is None or before.text not in ("operator",)):
                digits = found.group(1).replace("'", "")
                value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" and digits != "0" else 10)
                if value <= 1 << 16:
                    yield make("off_by_one", i, i, f"{value + 1}{found.group(2)}")
                    if value > 0:
                        yield make("off_by_one", i, i, f"{value - 1}{found.group(2)}")
        # ---- dropped_check: guards, and calls of checks ----
        if t.text == "if" and i + 1 < len(tokens) and tokens[i + 1].text == "(" and tokens[i + 1].match:
            yield from guards(source, i, make)
        # ---- calls ----
        if t.text == "(" and t.match and before is not None and before.kind == "name" and before.text not in NO_CALL:
            yield from calls(source, i, make)
        # ---- statements ----
        if begins_statement(source, i):
            yield from statements(source, i, make)


def of_stream(source, first, last, t):
    return t.text in ("<<", ">>") and any(source.tokens[j].kind == "string" or source.tokens[j].text in ("cout", "cerr", "out", "in")
                                          for j in range(first, last + 1))


def guards(source, i, make):
    """if (condition) throw ...; and the like: the condition is false."""
    tokens = source.tokens
    open_, close = i + 1, tokens[i + 1].match
    first = open_ + 1
    semicolon = source._until(first, {";"})
    if semicolon < close:
        first = semicolon + 1
    if any(tokens[j].text == "=" for j in range(first, close)) and semicolon >= close:
        return
    body = close + 1
    if body < len(tokens) and tokens[body].text == "{":
        inner = [j for j in range(body + 1, tokens[body].match)]
        begins = [j for j in inner if tokens[j - 1].text in (";", "{", "}")]
        if not begins:
            return
        body = begins[-1] if len(begins) < 3 else body
    if body >= len(tokens):
        return
    word = tokens[body].text
    if word in ("throw", "return", "continue", "break") or tokens[body].kind == "name" and CHECK.search(word):
        if first < close:
            yield make("dropped_check", first, close - 1, "false")


def calls(source, i, make):
    tokens = source.tokens
    name = tokens[i - 1].text
    first = source.chain_begin(i - 1)
    if first > 0 and (tokens[first - 1].kind == "name" and tokens[first - 1].text not in ("return", "throw", "else", "do", "case") or
                      tokens[first - 1].text in (">", "&", "*", "~", "]", "&&") and
                      not tokens[first - 1].spaced and tokens[first - 1].end < tokens[first].start):
        return  # a declaration
    if any(j in source.hidden and tokens[j].text == "operator" for j in range(first, i)):
        return
    arguments = source.arguments(i)
    ranges = [list(range(a, b + 1)) for a, b in arguments]
    for r in ranges:
        if not r:
            return
        for j in r[:-1]:  # two names beside each other: a declaration, or a lambda
            if tokens[j].kind == "name" and tokens[j + 1].kind == "name" and tokens[j].text not in ("sizeof", "return", "throw", "template"):
                return
            if tokens[j].text in ("&", "*") and not tokens[j].spaced and tokens[j - 1].end == tokens[j].start:
                return
    close = tokens[i].match
    if name in ("min", "max") and len(arguments) == 2:
        for a, b in arguments:
            yield make("dropped_term", first, close, source.between(a, b))
        return
    if name in SAME_EITHER_WAY or len(arguments) < 2:
        return
    for (a, b), (c, d) in zip(arguments, arguments[1:]):
        one, two = source.between(a, b), source.between(c, d)
        if one == two or "[" in (one + two)[:1] or '"' in one + two or "{" in one + two:
            continue
        yield make("swapped_arguments", first, close,
                   source.between(first, a - 1) + two + ", " + one + source.between(d + 1, close))


def begins_statement(source, i):
    tokens = source.tokens
    if source.block[i] != "code" or i == 0 or tokens[i].text in ("}", ")", "{"):
        return False
    before = tokens[i - 1]
    if before.text in (";", "{", "}", "else", "do"):
        # not in the head of a for
        j, depth = i - 1, 0
        while j >= 0 and tokens[j].text not in ("{", "}"):
            if tokens[j].text == ")" and tokens[j].match is not None:
                j = tokens[j].match
            elif tokens[j].text == "(":
                return False
            j -= 1
        return before.text != "}" or source.tokens[before.match - 1].text not in ("=", ",", "(", "return") if before.match else True
    if before.text == ")" and before.match is not None:
        head = before.match - 1
        return head >= 0 and (tokens[head].text in ("if", "for", "while") or
                              tokens[head].text == "constexpr" and tokens[head - 1].text == "if")
    return False


def statements(source, i, make):
    """Assignments, calls and counting as statements of their own."""
    tokens = source.tokens
    t = tokens[i]
    if t.text in ("++", "--"):
        end = source._until(i, {";"})
        if end < len(tokens) and tokens[end].text == ";":
            yield make("dropped_statement", i, end, "", True)
        return
    at = i
    if t.text == "*":
        at += 1
    if tokens[at].kind != "name" or tokens[at].text in NO_CALL | {"return", "break", "continue", "using", "goto", "case",
                                                                  "default", "auto", "const", "static", "constexpr", "delete", "else"}:
        return
    last = source.chain_end(at)
    if last + 1 >= len(tokens):
        return
    following = tokens[last + 1].text
    if following == ";" and tokens[last].text == ")" or following in ("++", "--"):
        end = source._until(last + 1, {";"})
        if tokens[end].text != ";":
            return
        called = tokens[source_name_of_call(source, last)].text if tokens[last].text == ")" else ""
        operator = "dropped_check" if CHECK.search(called) and not called.startswith(("fail", "throw")) else "dropped_statement"
        yield make(operator, i, end, "", True)
    elif following in ("=", "+=", "-=", "*=", "/=", "|=", "&=", "^=", "<<=", ">>=", "%=") and tokens[last + 1].kind == "mark":
        end = source._until(last + 2, {";"})
        if end < len(tokens) and tokens[end].text == ";":
            yield make("dropped_statement", i, end, "", True)


def source_name_of_call(source, close):
    i = source.tokens[close].match - 1
    if i >= 0 and source.tokens[i].text == ">" and source.tokens[i].match is not None:
        i = source.tokens[i].match - 1
    return max(i, 0)
