"""Hugging Face `tokenizers` engines that split text as Gemma does: parsed, built from a vocabulary, checked.

An engine runs, in this order: added tokens split out of the raw text (leftmost, longest), spaces to U+2581, BPE with
byte fallback. There is no word splitter: BPE sees everything between two added tokens at once.
"""

import re
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from gemworks.errors import CheckpointError
from gemworks.tokenizer.vocabulary import (
    CONTROL_NAMES,
    SPACE,
    SPECIAL_NAMES,
    PieceType,
    Vocabulary,
    byte_piece,
    is_control_name,
    merges_of,
)

_SUBWORD_AFFIX = re.compile(r'"(continuing_subword_prefix|end_of_word_suffix)"\s*:\s*"[^"]')


@dataclass(frozen=True, slots=True)
class Engines:
    """Two engines over one model (the second costs 2 ms), and what they say about the vocabulary.

    In `whole` the control tokens are added tokens, which text is searched for; in `text` they are not, so that
    `<start_of_turn>` typed by a user is seven ordinary pieces. An added token outside the model's own vocabulary has
    another id in `text`: `moved` takes it back. `matched` are the added tokens of both.
    """

    whole: tokenizers.Tokenizer
    text: tokenizers.Tokenizer
    moved: dict[int, int]
    names: list[str]
    controls: frozenset[int]
    matched: frozenset[int]

    @property
    def has_plain_matches(self) -> bool:
        """True where the matched tokens are looked for as they are: no spaces stripped, no word borders."""
        added = self.text.get_added_tokens_decoder().values()
        return not any(t.lstrip or t.rstrip or t.single_word or t.normalized for t in added)


def make_engines(engine: tokenizers.Tokenizer, where: str) -> Engines:
    """Take over `engine`. CheckpointError, naming `where`, unless it works as Gemma's does."""
    require_gemma(engine, where)
    engine.no_truncation()
    engine.no_padding()
    added = engine.get_added_tokens_decoder()
    forgotten = [
        AddedToken(name, special=True, normalized=False)
        for name in sorted(CONTROL_NAMES - {token.content for token in added.values()})
        if engine.token_to_id(name) is not None
    ]
    if forgotten:
        engine.add_special_tokens(forgotten)
        added = engine.get_added_tokens_decoder()
    controls = {i: token for i, token in added.items() if token.special or is_control_name(token.content)}
    matched = {i: token for i, token in sorted(added.items()) if i not in controls}
    names = names_by_id(engine, where)
    text = tokenizers.Tokenizer(engine.model)
    text.normalizer = engine.normalizer
    text.pre_tokenizer = engine.pre_tokenizer
    text.add_tokens(list(matched.values()))
    here = {i: text.token_to_id(token.content) for i, token in matched.items()}
    moved = {there: i for i, there in here.items() if there is not None and there != i}
    return Engines(engine, text, moved, names, frozenset(controls), frozenset(matched))


def engine_from_json(data: bytes, where: str) -> tokenizers.Tokenizer:
    """Parse a tokenizer.json. Raises CheckpointError, naming `where`, for anything else."""
    try:
        text = data.decode("utf-8")
        # The Rust parser (0.23.3) cuts merges at the prefix's byte length; inside U+2581 that aborts the process.
        if set_affixes := _SUBWORD_AFFIX.findall(text):
            raise ValueError(f"{set_affixes[0]} set, which Gemma's tokenizer leaves null")
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the Rust parser raises plain Exception or ValueError
        raise CheckpointError(
            f"{where}: a tokenizer must be a whole tokenizer.json, got {len(data)} bytes with {_first_line(error)}.\n"
            "The file is cut off or something else; fetch it again."
        ) from error


def engine_from_vocabulary(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """An engine that splits as the published tokenizer.json does, and is saved as one."""
    merges = merges_of(vocabulary)
    types, pieces = vocabulary.types, vocabulary.pieces
    ids = {piece: i for i, piece in enumerate(pieces)}
    unknown = next((piece for piece, t in zip(pieces, types, strict=True) if t is PieceType.UNKNOWN), "<unk>")
    engine = tokenizers.Tokenizer(
        models.BPE(ids, merges, unk_token=unknown if unknown in ids else None, fuse_unk=True, byte_fallback=True)
    )
    engine.normalizer = normalizers.Replace(" ", SPACE)
    # Never splits, as no space is left by then; the published file has it, and transformers reads it.
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    engine.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", ids["<bos>"])]
    )
    apart = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED)
    engine.add_tokens(
        [
            AddedToken(piece, normalized=False, special=_is_special(piece, t))
            for piece, t in zip(pieces, types, strict=True)
            if t in apart
        ]
    )
    return engine


def _is_special(piece: str, piece_type: PieceType) -> bool:
    """The published flag for the names Gemma reserves; true for control pieces somebody added."""
    if is_control_name(piece):
        return piece in SPECIAL_NAMES
    return piece_type in (PieceType.CONTROL, PieceType.UNKNOWN)


def names_by_id(engine: tokenizers.Tokenizer, where: str) -> list[str]:
    """Return every piece in the order of ids. Raises CheckpointError where an id has none. 0.1 s for 262,144 pieces."""
    size = engine.get_vocab_size()
    names = [name for name in map(engine.id_to_token, range(size)) if name is not None]
    if len(names) < size:
        hole = next(i for i in range(size) if engine.id_to_token(i) is None)
        raise CheckpointError(
            f"{where}: {size} pieces must have the ids 0 to {size - 1}, got no piece for id {hole}.\n"
            "A piece or an id occurs twice, or one is missing."
        )
    return names


def require_gemma(engine: tokenizers.Tokenizer, where: str) -> None:
    """Raise CheckpointError unless the engine works as Gemma's: BPE with byte fallback, only spaces rewritten."""
    model, sample = engine.model, " a1  \uff21\n?b"
    wanted = sample.replace(" ", SPACE)
    seen = sample if engine.normalizer is None else engine.normalizer.normalize_str(sample)
    defects = []
    if not isinstance(model, models.BPE):
        defects.append(f"a {type(model).__name__} model")
    elif not model.byte_fallback:
        defects.append("BPE without byte fallback")
    elif model.dropout:
        defects.append(f"random merges (dropout {model.dropout})")
    if seen != wanted:
        defects.append(f"a normaliser that makes {seen!r} of {sample!r}")
    splitter = engine.pre_tokenizer
    if splitter is not None and [part for part, _ in splitter.pre_tokenize_str(wanted)] != [wanted]:
        defects.append(f"a splitter of words ({type(splitter).__name__})")
    if missing := [b for b in map(byte_piece, range(256)) if engine.token_to_id(b) is None]:
        defects.append(f"no piece for {len(missing)} of the 256 bytes")
    if defects:
        raise CheckpointError(
            f"{where}: Gemma's tokenizer must be BPE with byte fallback that only rewrites spaces, "
            f"got {', '.join(defects)}.\nThe file is likely the tokenizer of another model."
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
