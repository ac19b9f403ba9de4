"""The sizes of the network."""

from dataclasses import dataclass

from rlx._checks import check_whole


@dataclass(frozen=True, kw_only=True)
class Image:
    """One kind of image, in pixels.

    Attributes:
      height, width: of the image; multiples of the patch.
      merge: how many rows and columns of patches become one token, after the stem.
    """

    height: int
    width: int
    merge: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes.

    Attributes:
      vocab_size: of the text.
      classes: of the reader, the blank of CTC (0) among them.
      images: the kinds of image by name, as pairs. Each has its own merging and positions; the rest is shared.
      patch: side of a patch in pixels.
      stem_size, stem_layers, stem_expansion: channels a patch, blocks of mixing neighbours, their inner width.
      hidden_size, num_attention_heads, intermediate_size: of every layer after the stem.
      vision_layers: over image tokens.
      text_layers: over text alone; what `embed_text` reads.
      decoder_layers: over text that looks at image tokens.
      max_length: tokens of text.
      embedding_size: of the space that images and texts share.

    Raises:
      TypeError: `images` are not pairs of a name and an `Image`.
      ValueError: a size that is not a positive whole number, or that another does not divide.

    Example:
      >>> Config(vocab_size=8, classes=3).tokens("word")
      (1, 32)
    """

    vocab_size: int
    classes: int
    images: tuple[tuple[str, Image], ...] = (
        ("word", Image(height=32, width=128, merge=(8, 1))),
        ("scene", Image(height=64, width=64, merge=(4, 2))),
    )
    patch: int = 4
    stem_size: int = 64
    stem_layers: int = 2
    stem_expansion: int = 2
    hidden_size: int = 160
    num_attention_heads: int = 4
    intermediate_size: int = 480
    vision_layers: int = 3
    text_layers: int = 1
    decoder_layers: int = 2
    max_length: int = 32
    embedding_size: int = 96

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name != "images"}
        for name, value in sizes.items():
            check_whole(name, value, low=0 if name.endswith("layers") else 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads: {self.num_attention_heads} does not divide {self.hidden_size}")
        pairs = self.images if isinstance(self.images, (tuple, list)) else (None,)
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs):
            raise TypeError(f'images: expected pairs, as in (("photo", Image(...)),), got {self.images!r}')
        if not self.images:
            raise ValueError("images: at least one kind is needed")
        for name, image in self.images:
            rows, columns = image.merge
            for side, parts in ((image.height, rows), (image.width, columns)):
                if side < 1 or parts < 1 or side % (self.patch * parts):
                    raise ValueError(f"images: {name!r}: {side} is not a multiple of {parts} patches of {self.patch}")

    def image(self, kind: str) -> Image:
        """The geometry of a kind.

        Raises:
          ValueError: there is no such kind; names those there are.
        """
        for name, image in self.images:
            if name == kind:
                return image
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(repr(name) for name, _ in self.images)}")

    def tokens(self, kind: str) -> tuple[int, int]:
        """Rows and columns of the tokens of an image."""
        image = self.image(kind)
        return image.height // (self.patch * image.merge[0]), image.width // (self.patch * image.merge[1])
