"""More than 500 texts on which tokenizers go wrong, the same on every run.

Why these: pre-tokenizers split by Unicode class (letters, marks, digits, spaces), so every class and every
pair of neighbours matters; SentencePiece falls back to bytes and merges spaces; special tokens may stand in
a user's text as plain text.
"""

from __future__ import annotations

import random
import unicodedata

SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>",
    "<pad>", "<unk>", "<s>", "</s>", "<mask>", "[multimodal]", "<unused0>", "<unused98>", "<0x0A>",
    "<0xE2>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>",
    "<jupyter_code>", "<empty_output>", "<think>", "</think>", "<tool_call>", "<start_of_image>",
    "<image_soft_token>", "<h1>", "</table>", "<em>",
)  # fmt: skip

ALPHABETS = {
    "latin": "aeioubcdfgst", "caps": "AEIOUBCDFGST", "digits": "0123456789", "spaces": "  \t\n\r",
    "punctuation": "!?.,:;'\"()[]{}<>|/\\@#$%^&*-_=+~`", "accented": "éèüößñçåøÆŒžłı",
    "greek": "αβγδεζηθΩΣς", "cyrillic": "абвгдежзЖЩЫ", "hebrew": "אבגדהוזחטש", "arabic": "ابتثجحخدذرشغ",
    "marks": "\u0301\u0308\u0327\u20dd", "devanagari": "कखगघनमसािीुेैो्ंः",
    "thai": "กขคงจฉชซญดตถทนบปผาิีึืุูเแโ่้", "kana": "あいうえおカキクケコー",
    "han": "漢字中文語言模型", "hangul": "가각간한국어말", "emoji": "😀🎉👍🔥🤖🧪",
    "modifiers": "🏽🏿\u200d\ufe0f", "symbols": "€£¥©®™°±×÷√∞≠≤∑∫→←", "odd_digits": "²³½¾٠١٢۳०१Ⅷ⑤",
    "odd_spaces": "\u00a0\u2003\u3000\u2009\u200b\u202f\u2028\u2029\u0085\ufeff",
    "controls": "\x00\x01\x07\x08\x0b\x0c\x1b\x7f",
    "private": "\ue000\uf8ff\U000f0000\ufffd\ufffe\uffff", "math": "𝐀𝒷𝔠𝕕𝟘𝟙", "metaspace": "▁ĠĊ",
    "rtl": "\u200f\u200e\u202b\u202c\u2067\u2069",
}  # fmt: skip

WRITTEN = (
    "", " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\r\n\r\n", " \n", "\n ",
    "\t\n", " \t \n ", "Hello", " Hello", "  Hello", "Hello ", "Hello  ", "Hello\n", "Hello \n",
    "Hello\n\n", "\nHello", "Hello world", "Hello, world!", "Hello,world!", "HELLO WORLD",
    "hElLo WoRlD", "it's", "IT'S", "It's", "we're WE'RE we'Re",
    "I'll I'LL i'Ll they'd THEY'D you've YOU'VE I'm I'M can't CAN'T", "it’s we’re I’m don’t",
    "'s 't 're 've 'm 'll 'd", "'S 'T 'RE 'VE 'M 'LL 'D", "''s '''t", " 's", "ſ'ſ it'ſ 'ſ",
    "o'clock rock'n'roll d'Artagnan l'été", "1", "12", "123", "1234", "12345", "123456", "1234567890",
    "1,234,567.89", "3.14159265358979", "-1e-10", "0x1F", "1st 2nd", " 1", " 12", "  123", "a1b2c3",
    "2024-02-29T23:59:60Z", "192.168.0.1:8080", "½ ¼ ²³ ①②③ ⅫⅧ ١٢٣ १२३ 𝟏𝟐𝟑", "٣٫١٤", "e\u0301", "é",
    "e\u0301\u0301\u0301", "\u0301", " \u0301", "a\u0300\u0301\u0302b", "Z̸̢͝a̵͠l̷̛g̶͘o̴̕", "ﬁ ﬂ ﬀ",
    "Å Å Å", "ÅﬁⅣ㎏", "日本語のテキスト", "中文没有空格", "한국어 문장입니다.",
    "中文 and English 混合 text", "カタカナ ひらがな 漢字", "。、！？「」『』",
    "ｆｕｌｌｗｉｄｔｈ １２３", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שלום עולם", "שָׁלוֹם",
    "नमस्ते दुनिया", "क्षत्रिय ज्ञान", "สวัสดีชาวโลก", "ສະບາຍດີ", "မင်္ဂလာပါ", "ជំរាបសួរ",
    "Привет, мир!", "ПРИВЕТ", "Γειά σου Κόσμε", "Γ'ειά", "გამარჯობა", "Բարեւ", "ᚠᛇᚻ", "ไทยกับEnglish",
    "தமிழ் మలయాళം", "😀", "😀😀😀", " 😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷🇯🇵", "❤️", "☠️☢️",
    "1️⃣2️⃣", "👩🏾‍🚀 text 👩🏾‍🚀", "a😀b", "🤦🏼‍♂️🤷🏻‍♀️", "🫠🫡🩷", "\u200d", "\ufe0f", "\u00a0",
    " \u00a0 ", "a\u00a0b", "\u2003\u2003x", "\u3000全角", "zero\u200bwidth", "\ufeffBOM", "a\u00adb",
    "a\u2028b\u2029c", "a\x85b", "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f",
    "\x0b\x0c", "bell\x07", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\ue000", "\ud7ff\ue000",
    "\U0001f600\ufffd\U0001f600", "\u0085\u0085", "\u061c\u200e\u200f", "\u202eabc\u202c",
    "\u2066x\u2069", "def f(x):\n    return x + 1\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "#include <stdio.h>\n\n\nint main(void)\n{",
    "if x == 1:\n\tpass\nelse:\n        pass", "SELECT * FROM t WHERE a>=1 AND b<>'x';",
    "<div class=\"a\">\n  <p>Hi</p>\n</div>", "{\"key\": [1, 2, {\"a\": null}], \"b\": \"\\u00e9\\n\"}",
    "https://example.org/a/b?c=d&e=f#g", "C:\\Users\\x\\file.txt", "~/a/../b", "user@example.org",
    "$\\frac{a}{b} = \\sqrt{x^2}$", "\\begin{align}\n  x &= 1 \\\\\n\\end{align}",
    "**bold** _it_ `code` ~~x~~", "| a | b |\n|---|---|\n| 1 | 2 |", "```python\nprint('hi')\n```",
    "a_b_c snake_case camelCase PascalCase kebab-case SCREAMING_CASE", "...", "....", "…", "!!!",
    "?!?!", "---", "===", "====", "________", "////", "\\\\\\", "(((())))", "[[]]", "<<>>", "->", "=>",
    "!=", "::", "“quotes” ‘single’ «guillemets» „low“", "em—dash en–dash minus−sign", "a/b\\c|d",
    "100%", "$5.00 €5,00 £5 ¥500", "A.B.C. U.S.A.", "▁", "▁▁", "▁a", "a▁b", " ▁ ", "Ġ", "ĠHello", "Ċ",
    "##ing", "@@", "Ã©", "â€™", "<", ">", "<|", "|>", "<|x|>", "< s >", "<s", "s>",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtsgesellschaftskapitän",
    "aaaaaaaaaaaaaaaa", "hahahahaha", "the the the the", "The quick brown fox jumps over the lazy dog.",
    "Tab\tseparated\tvalues", "trailing tabs\t\t\t", "a\rb\rc", "\n\r\n\r", "   leading", "trailing   ",
    "in   between   words", "x  y   z    w     v", "\n  indented\n    more\n", " \n \n ", "\t \t \t",
    "a \n\n b", "You are a helpful assistant.\n", "user\nHi", "ok\u0000ok", "é" * 30, "\u0301" * 20,
    "क्" * 12, "🏽" * 9,
)  # fmt: skip


def special_texts() -> list[str]:
    """Special tokens alone, glued to text, doubled, broken, and in a chat's form."""
    texts = []
    for special in SPECIALS:
        texts += [special, f"a{special}b", f" {special} {special}"]
    texts += [f"{special[:-1]} {special[1:]}{special.upper()}" for special in SPECIALS[:6]]
    texts.append(
        "<|im_start|>system\nYou are X.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    texts.append("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n")
    texts.append("".join(SPECIALS))
    return texts


def runs() -> list[str]:
    """One character many times, at lengths around where vocabularies stop having a token."""
    characters = [
        " ",
        "\n",
        "\t",
        "a",
        "=",
        "-",
        "0",
        ".",
        "é",
        "漢",
        "😀",
        "\u00a0",
        "\r\n",
        " \n",
        "ab ",
        "\u200b",
    ]
    return [character * n for character in characters for n in (7, 16, 31, 33, 130)]


def pairs(rng: random.Random) -> list[str]:
    """Every class beside a few others, three characters of each, with and without a space between."""
    names = sorted(ALPHABETS)
    texts = []
    for first in names:
        for second in rng.sample(names, 5):
            left = "".join(rng.choices(ALPHABETS[first], k=3))
            right = "".join(rng.choices(ALPHABETS[second], k=3))
            texts.append(left + rng.choice(["", " ", "\n"]) + right)
    return texts


def mixtures(rng: random.Random, n_texts: int) -> list[str]:
    """Random walks over all classes, up to 60 characters."""
    names = sorted(ALPHABETS)
    texts = []
    for _ in range(n_texts):
        pieces = ["".join(rng.choices(ALPHABETS[rng.choice(names)], k=rng.randint(1, 4))) for _ in range(15)]
        texts.append("".join(pieces))
    return texts


def assigned_characters(rng: random.Random, n_texts: int) -> list[str]:
    """Random characters of all planes, none of them a surrogate, with ASCII between them."""
    texts = []
    for _ in range(n_texts):
        codes = [rng.choice([rng.randrange(0x80, 0xD800), rng.randrange(0xE000, 0x20000)]) for _ in range(8)]
        texts.append("".join(chr(code) + rng.choice(["", " ", "a", "1"]) for code in codes))
    return texts


def hard_texts() -> list[str]:
    """All of them, without doubles, in one fixed order."""
    rng = random.Random(20)
    texts = [
        *WRITTEN,
        *special_texts(),
        *runs(),
        *pairs(rng),
        *mixtures(rng, 90),
        *assigned_characters(rng, 40),
    ]
    texts += [unicodedata.normalize("NFD", text) for text in WRITTEN if not text.isascii()]
    return list(dict.fromkeys(texts))
