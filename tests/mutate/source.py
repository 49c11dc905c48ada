"""C++ source as tokens with brackets, as far as planting mutants needs it: the code here is formatted by clang-format,
so a `<` with spaces on both sides compares, and one without is a bracket of a template."""
import re

TOKEN = re.compile(r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<directive>(?<![^\n])[ \t]*\#(?:[^\n]*\\\n)*[^\n]*)
  | (?P<string>(?:u8|u|U|L)?R"(?P<raw>[^(\s]*)\(.*?\)(?P=raw)"|(?:u8|u|U|L)?"(?:\\.|[^"\\\n])*"|(?:u8|u|U|L)?'(?:\\.|[^'\\\n])+')
  | (?P<number>\.?[0-9](?:[eEpP][+-]|[\w.'])*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<mark>::|->\*|->|<=>|<<=|>>=|<<|>=|<=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|\.\.\.|[-+*/%&|^~!=<>?:;,.(){}\[\]\\@])
""", re.VERBOSE | re.DOTALL)

# Higher binds closer. Those that are also something else (unary, reference, bracket) count where spaces stand around.
PRECEDENCE = {"*": 10, "/": 10, "%": 10, "+": 9, "-": 9, "<<": 8, ">>": 8, "<=>": 7, "<": 6, "<=": 6, ">": 6, ">=": 6,
              "==": 5, "!=": 5, "&": 4, "^": 3, "|": 2.5, "&&": 2, "||": 1}
ASSIGNMENT = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="}
ENDS = {",", ";", "?", ":", "return", "throw", "case", "else", "do", "co_return", "co_yield", "goto", "new", "delete"}
# Blocks for other systems and compilers than those that the tests here are built for.
ELSEWHERE = re.compile(r"#\s*if(?:def)?\b(?!.*(?:!|ndef)).*(?:_WIN32|_MSC_VER|__CUDA|__HIP|NEON|aarch64|__APPLE__|GPTQ_CUDA)")


class Token:
    __slots__ = ("kind", "text", "start", "end", "spaced", "match", "index")

    def __init__(self, kind, text, start):
        self.kind, self.text, self.start, self.end = kind, text, start, start + len(text)
        self.spaced = False  # white space on both sides
        self.match = None    # index of the other bracket
        self.index = -1

    def __repr__(self):
        return f"{self.text}@{self.start}"


class Source:
    """A file: its tokens without comments and preprocessor lines, brackets matched, and what only the compiler sees."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.tokens = []
        self._read()
        self._match()
        self.hidden = self._hidden()
        self.constant = self._constant()
        self.block = self._blocks()

    # ---- reading ----
    def _read(self):
        stack = []  # of conditional blocks: whether they are for elsewhere
        at, text = 0, self.text
        while at < len(text):
            found = TOKEN.match(text, at)
            if not found:
                raise ValueError(f"{self.path}:{self.line(at)}: not understood: {text[at:at + 20]!r}")
            kind, word = found.lastgroup, found.group()
            if kind == "directive":
                line = word.strip()
                if re.match(r"#\s*if", line):
                    stack.append(bool(ELSEWHERE.match(line)))
                elif re.match(r"#\s*(else|elif)", line) and stack:
                    stack[-1] = re.match(r"#\s*else", line) is None and bool(ELSEWHERE.match(line.replace("elif", "if", 1)))
                elif re.match(r"#\s*endif", line) and stack:
                    stack.pop()
            elif kind != "space" and not any(stack):
                token = Token(kind, word, at)
                token.spaced = text[at - 1:at].isspace() and text[token.end:token.end + 1].isspace()
                token.index = len(self.tokens)
                self.tokens.append(token)
            at = found.end()

    def line(self, position):
        return self.text.count("\n", 0, position) + 1

    def _match(self):
        stack = []
        closing = {")": "(", "]": "[", "}": "{"}
        for i, t in enumerate(self.tokens):
            if t.text in "([{" and t.kind == "mark":
                stack.append(i)
            elif t.text in closing:
                while stack and self.tokens[stack[-1]].text == "<":  # was none
                    stack.pop()
                if stack and self.tokens[stack[-1]].text == closing[t.text]:
                    t.match = stack.pop()
                    self.tokens[t.match].match = i
            elif t.text == "<" and not t.spaced and i > 0:
                before = self.tokens[i - 1]
                if before.kind == "name" and before.text != "operator":
                    stack.append(i)
            elif t.text == ">":
                if stack and self.tokens[stack[-1]].text == "<":
                    t.match = stack.pop()
                    self.tokens[t.match].match = i
            elif t.text == ";":
                while stack and self.tokens[stack[-1]].text == "<":
                    stack.pop()

    # ---- what is not for planting ----
    def _until(self, i, ends):
        """Index of the first token from i on at this depth whose text is one of ends."""
        tokens = self.tokens
        while i < len(tokens) and tokens[i].text not in ends:
            if tokens[i].text in "([{<" and tokens[i].match:
                i = tokens[i].match
            elif tokens[i].text in ")]}":
                break
            i += 1
        return i

    def _hidden(self):
        """Tokens that only the compiler sees: types, templates, constraints, assertions; enumerators and cases."""
        hidden, tokens = set(), self.tokens
        for i, t in enumerate(tokens):
            end = None
            following = tokens[i + 1] if i + 1 < len(tokens) else None
            if t.text in ("static_assert", "decltype", "sizeof", "alignas", "__attribute__", "asm", "noexcept", "alignof"):
                end = following.match if following is not None and following.text == "(" else None
            elif t.text == "template" and following is not None and following.text == "<":
                end = following.match
            elif t.text in ("using", "concept", "typedef"):
                end = self._until(i, {";"})
            elif t.text == "requires":
                position = self.text.find("\n", t.start)
                end = i
                while end + 1 < len(tokens) and tokens[end + 1].start < position:
                    end += 1
                if following is not None and following.text == "(" and following.match:
                    end = max(end, following.match)
            elif t.text == "enum":
                end = self._until(i, {";"})
            elif t.text == "case":
                end = self._until(i, {":"})
            elif t.text == "operator":
                end = i + 2
            elif t.text == "<" and t.match:
                end = t.match
            if end:
                hidden.update(range(i, end + 1))
        return hidden

    def _constant(self):
        """Tokens of constant expressions: the initializers of constexpr variables, conditions of if constexpr."""
        constant, tokens = set(), self.tokens
        for i, t in enumerate(tokens):
            if t.text != "constexpr":
                continue
            if i > 0 and tokens[i - 1].text == "if" and i + 1 < len(tokens) and tokens[i + 1].match:
                constant.update(range(i, tokens[i + 1].match + 1))
                continue
            end = self._until(i, {";", "{", "=", "("})
            if end < len(tokens) and tokens[end].text == "=" or (end < len(tokens) and tokens[end].text == "{"):
                if tokens[end].text == "{" and tokens[end - 1].text in (")", "const", "noexcept", "override"):
                    continue
                stop = self._until(end, {";"})
                constant.update(range(i, stop + 1))
        return constant

    def _blocks(self):
        """For each token the kind of braces it stands in: code, class, or values; "" outside of all."""
        kinds, stack = [], []
        tokens = self.tokens
        for i, t in enumerate(tokens):
            if t.text == "}" and t.kind == "mark" and stack:
                stack.pop()
            kinds.append(stack[-1] if stack else "")
            if t.text == "{" and t.kind == "mark":
                stack.append(self._kind_of_brace(i))
        return kinds

    def _kind_of_brace(self, i):
        tokens = self.tokens
        before = tokens[i - 1].text if i else ""
        j, words = i - 1, []
        while j >= 0 and tokens[j].text not in (";", "{", "}"):
            if tokens[j].text in ")]>" and tokens[j].match is not None:
                j = tokens[j].match
            words.append(tokens[j].text)
            j -= 1
        if {"namespace", "extern"} & set(words):
            return "class"
        if {"struct", "class", "union", "enum"} & set(words) and before != ")":
            return "class"
        if before in (")", "]", "const", "noexcept", "else", "do", "try", "mutable", "override", ";", "{", "}", ":"):
            return "code"
        if "->" in words and before not in ("=", ",", "(", "return"):
            return "code"
        return "values"

    # ---- extents ----
    def binary(self, i):
        """Precedence of token i where it is a binary operator, else None."""
        t = self.tokens[i]
        if t.kind == "mark" and t.text == ">" and i + 1 < len(self.tokens) and self.tokens[i + 1].start == t.end and \
                self.tokens[i + 1].text == ">":
            return None
        return PRECEDENCE.get(t.text) if t.kind == "mark" and t.spaced and t.match is None else None

    def operands(self, i, assignment=False):
        """Index of the first and last token of the operation whose operator is token i, or None."""
        precedence = 0 if assignment else self.binary(i)
        tokens = self.tokens
        first = i
        while first > 0:
            t = tokens[first - 1]
            if t.match is not None and t.text in ")]>" and t.match < first:
                first = t.match
                continue
            other = self.binary(first - 1)
            if t.text in "([{<}" and t.kind == "mark" or t.text in ENDS or t.text in ASSIGNMENT:
                break
            if other is not None and other < precedence:
                break
            first -= 1
        last = i
        while last + 1 < len(tokens):
            t = tokens[last + 1]
            if t.text in "([<" and t.match is not None or t.text == "{" and t.match is not None and last > i:
                last = t.match
                continue
            other = self.binary(last + 1)
            if t.text in ")]}{" and t.kind == "mark" or t.text in ENDS - {"new"} or t.text in ASSIGNMENT:
                if not (assignment and t.text in ("?", ":")):
                    break
            if other is not None and other <= precedence:
                break
            last += 1
        return (first, last) if first < i < last else None

    def chain_begin(self, i):
        """First token of the postfix expression that ends at token i: a name, a call, an index."""
        tokens = self.tokens
        while True:
            t = tokens[i]
            if t.text in ")]>" and t.match is not None:
                i = t.match
                if i > 0 and (tokens[i - 1].kind == "name" or tokens[i - 1].text in ")]>" and tokens[i - 1].match is not None):
                    i -= 1
                    continue
                return i
            if i > 0 and tokens[i - 1].text in (".", "->", "::") or i > 0 and tokens[i - 1].text == "template":
                i -= 1
                if i > 0 and (tokens[i - 1].kind == "name" or tokens[i - 1].text in ")]>." or tokens[i - 1].text in ("->", "::")):
                    i -= 1
                    continue
                return i
            return i

    def chain_end(self, i):
        """Last token of the postfix expression that begins at token i."""
        tokens = self.tokens
        if tokens[i].text in "(" and tokens[i].match:
            i = tokens[i].match
        while i + 1 < len(tokens):
            t = tokens[i + 1]
            if t.text in "([<" and t.match is not None:
                i = t.match
            elif t.text in (".", "->", "::") and i + 2 < len(tokens):
                i += 2
            else:
                break
        return i

    def between(self, first, last):
        """The source of these tokens in one line, without comments."""
        parts = []
        for i in range(first, last + 1):
            if i > first:
                parts.append(" " if self.tokens[i].start > self.tokens[i - 1].end else "")
            parts.append(self.tokens[i].text)
        return "".join(parts)

    def arguments(self, i):
        """Token ranges of the arguments in the parentheses that token i opens."""
        tokens, result = self.tokens, []
        first, end = i + 1, tokens[i].match
        if first == end:
            return []
        j = first
        while j <= end:
            if j == end or tokens[j].text == ",":
                result.append((first, j - 1))
                first = j + 1
            elif tokens[j].text in "([{<" and tokens[j].match is not None:
                j = tokens[j].match
            j += 1
        return result
