"""Networks: parameters and arithmetic only; no loss, no sampling of masks.

Arrays of rank two and more carry their axes as a suffix of their name:

    B  batch             N  patches             D  width               V  vocabulary
    P  image-text pairs  L  text tokens         H  heads               C  channels, 3
    R  read positions    S  sequence            K  width of a head     Y X  pixel rows, columns
    A  layers of a stack T  attended sequence   E  shared embedding    F  values of one patch (p * p * 3)
    M  masked positions  U  visible positions   Q  pairs of a queue    G  alternatives of an example
    I T  pictures and captions of an evaluation set
    J  experts; prototypes                     O  experts of a position   W  hidden layer of an expert
    Z  groups of R rows that go to one expert

The output of a ViT has S = 1 + N positions, the class token first; that of an embedding for a single stream, and the
fused patches of a joint stream, have N. `text_BLD` starts with the start token.
Booleans are named by what True means: `masked_BN` is hidden and predicted, `valid_BL` is a real token.
"""
