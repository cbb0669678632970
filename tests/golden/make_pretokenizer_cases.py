#!/usr/bin/env python3
"""Makes pretokenizer_{gpt2,llama3,qwen2}.jsonl: cases for pre-tokenizers whose models are too
large to test with.

Needs the PyPI package `tokenizers`. For each pre-tokenizer a small byte-level BPE vocabulary is
trained over the text
below with the pipeline that the published models document (normaliser, regular expression,
ignore_merges); then
Hugging Face `tokenizers` gives the words and ids of every case. First line of a file: the
vocabulary. Other lines:
text, words, ids, and ids_plain where it differs (control tokens in the text not recognised).

    python3 tests/golden/make_pretokenizer_cases.py tests/golden
"""
import json
import pathlib
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "<tool>>", "<to"]

CORPUS = [
    "The red cat was on the mat. The cat's mat isn't red; they've said it'll do, "
    "and we're sure I'd agree.",
    "THE CAT'S MAT ISN'T RED, THEY'VE SAID IT'LL DO, WE'RE SURE.",
    "In 1984 there were 12345 cats, 3.14159 of them red, and 1,000,000 mice.",
    "def main(argc, argv):\n    if argc == 1:\n        return 0\n\n"
    "    print('hello')\n\treturn 1\r\n",
    "Été à la façon d'un café naïve; über Größe; smörgåsbord; čeština; "
    "Ελληνικά; русский язык; 日本語の文; 한국어; العربية",
    "  two  spaces   three    four     five\n\n\nnewlines\t\ttabs ... "
    "!!! ??? --- === <<< >>> ((())) [] {}",
] * 3

HAND = [
    "", " ", "  ", "   ", "a", " a", "  a", "\n", "\n\n", " \n", "\n ", " \n ", " \n\n  \n   x",
    "a\n", "a \n", "a  \n  b", "\r\n",
    "\r", "a\r\nb", "a\r\n\r\nb", "x\t\ty", "\t", "\tx", "\t x", " \tx", "x \t", "!\n", "!\n\n",
    " !\n", "  !\n", "!?\r\n\r\n x", "! \n",
    "it's", "IT'S", "It'S", "we'RE", "we'Ve", "'s", "''s", " 's", "x's", "'sx", "'S", "'LL", "'lL",
    "'l", "'x", "'", "' s", "1's", "'1",
    "don't can't I'll you'd I'm they've we're", "DON'T CAN'T I'LL YOU'D I'M THEY'VE WE'RE",
    "'\u017f", "'\u017fx", "x'\u017f",
    "'\u212a", "'\ufb05", "'t\u017f", "\u2019s", "'re've", "'r", "'v", "'ve", "'RE", "'rE",
    "1", "12", "123", "1234", "12345", "123456", "1234567", " 1", " 12", " 1234", "  1234", "1 2 3",
    "1,234.5", "a1b2", "1a", "a1", "\u0663\u0664\u0665\u0666",
    "\u2460\u2461\u2462\u2463", "\u00bd\u00bc", "\u2163", "x\u00b2", "\uff11\uff12\uff13\uff14",
    "0x1F", "v1.2.3-rc4", "1\n2", "1\n\n2", "12\r\n",
    "!", "!!", "! !", " !", "  !", "a!", "!a", "!!a", " !a", "#tag", "@user", "$x", "(a)", "(a b)",
    "[1]", "{\"a\": 1}", "a.b", "a...b", "--flag=x", "_x", "__init__",
    "\u00e9", "e\u0301", "e\u0301\u0323", "e\u0323\u0301", "a\u0323\u0307b", "\u1e9b\u0323",
    "\u212b", "\u2126", "\uac00", "\u1100\u1161", "\u1100\u1161\u11a8",
    "q\u0307\u0323", "\u0301", " \u0301", "\u0301x", "\n\u0301", "x\u0301\u0301\u0301", "\u0344",
    "\u0958", "\u0f77", "\ufb1d", "\uf900", "\u2adc", "\U0001d15e",
    "\u00a0", "\u00a0x", " \u00a0x", "\u3000\u3000x", "\u2003 \u2003", "\u2028x", "\u0085",
    "\u0085x", "x\u0085\u0085", "\u200b", "\u200bx", "\u180e", "\ufeffx", "\u001c", "\u001cx",
    "\x00", "\x00\x00a", "\x0b", "\x0bx", "\x0c\n",
    "\u65e5\u672c\u8a9e", " \u65e5\u672c", "\u3001\u65e5", "\u0627\u0644\u0639",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a", "\U0001f600", " \U0001f600",
    "\U0001f600a", "a\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\ue000x",
    "\U0010ffff", "\u0378x",
    "\u01c5", "\u02b0x", "\u00aa\u00ba", "\u2160x", "\u3007", "\U00010348\U00010348",
    "\U0001d7d8\U0001d7d9\U0001d7da\U0001d7db",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_end|", "a<|im_end|>b", "<|im_start|><|im_start|>",
    "<tool>", "<tool>>", "<tool >", "x<to", "<tool>><to<tool>", "e<tool>\u0301", "<|end_of_text|> ",
    "the cat", " the the", "The red cat was", "cat's", "xyzzy", "aaaaaaaaaaaaaaaa",
    "                x", "x                ", "\n\n\n\n\n\n\n\nx",
    "for i in range(10):\n    print(i)\n", "if (a && b) {\r\n\treturn;\r\n}\r\n",
    "https://example.com/a?b=c&d=1#e",
]
ALPHABET = list("aZts'  \n\r\t1290.!,-_<>|") + [
    "\u00e9", "e\u0301", "\u0323", "\u4e2d", "\u2460", "\u00a0", "\u017f", "\u2003", "\U0001f600",
    "'re", "'LL", "<to",
]


def pipeline(name):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return tokenizer
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3 if name == "llama3" else QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def words_of(tokenizer, text):
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [text[begin:end] for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def main():
    folder = pathlib.Path(sys.argv[1])
    rng = random.Random(3)
    texts = list(HAND)
    for _ in range(60):
        texts.append("".join(rng.choice(ALPHABET) for _ in range(rng.randint(3, 16))))
    for name, file_name in (("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")):
        tokenizer = pipeline(name)
        trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(CORPUS, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        pieces = sorted(model["vocab"], key=model["vocab"].get)
        if name == "llama3":  # a word that no merge makes, so that ignore_merges shows
            pieces.append("xyzzy")
            vocab = {piece: i for i, piece in enumerate(pieces)}
            merges = [tuple(m) for m in model["merges"]]
            tokenizer.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=True)
        normal = len(pieces)
        tokenizer.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t in CONTROL])
        tokenizer.add_tokens(
            [AddedToken(t, special=False, normalized=False) for t in USER_DEFINED])
        pieces += CONTROL + USER_DEFINED
        kinds = [1] * normal + [3] * len(CONTROL) + [4] * len(USER_DEFINED)
        with open(folder / f"pretokenizer_{name}.jsonl", "w", encoding="ascii") as out:
            header = {"pretokenizer": file_name,
                      "made_with": f"tokenizers {tokenizers.__version__}",
                      "pieces": pieces, "kinds": kinds,
                      "merges": [" ".join(m) for m in model["merges"]]}
            out.write(json.dumps(header, separators=(",", ":")) + "\n")
            for text in texts:
                tokenizer.encode_special_tokens = False
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                tokenizer.encode_special_tokens = True
                plain = tokenizer.encode(text, add_special_tokens=False).ids
                case = {"text": text, "words": words_of(tokenizer, text), "ids": ids}
                if plain != ids:
                    case["ids_plain"] = plain
                out.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
