"""JSON fields of the commands whose documents are dictionaries, for the reference; a test compares them with runs."""

from __future__ import annotations

from dataclasses import dataclass

Fields = tuple[tuple[str, str, str], ...]  # name, type, meaning
PATH = ("path", "str", "Of the image, as it was given.")
ERROR: Fields = (PATH, ("error", "str", "Why the image cannot be read; the exit code is then 3."))
OUTPUT = ("output", "str | None", "File that was written.")


@dataclass(frozen=True)
class Document:
    """One kind of document.

    Attributes:
        title: When it is written.
        fields: In the order of the document.
        optional: Names of those that some documents lack.
    """

    title: str
    fields: Fields
    optional: frozenset[str] = frozenset()


LINES: dict[str, tuple[Document, ...]] = {
    "tokenize": (
        Document(
            "one line an image",
            (
                PATH,
                ("grid", "list[int]", "Rows and columns of tokens."),
                ("tokens", "list[int]", "Row by row, each from 0 to V - 1."),
            ),
        ),
        Document("one line a picture, with --decode", (PATH, OUTPUT)),
        Document(
            "one document, with --stats",
            (
                ("images", "int", "That were read."),
                ("bad", "int", "That could not be read."),
                ("tokens_per_image", "int", ""),
                ("vocab_size", "int", "V."),
                ("codes_used", "int", "Codes that occur."),
                ("perplexity", "float", "exp of the entropy of the codes in nats, 1 to V."),
                ("entropy_share", "float | None", "That entropy / ln min(V, tokens), 0 to 1."),
                ("commonest_share", "float | None", "Share of the most frequent code."),
                ("mae", "float | None", "Mean absolute error of pixels in [0, 1]; None without a decoder, as below."),
                ("psnr", "float | None", "dB."),
                ("psnr_image_mean", "float | None", "dB, of one colour an image."),
                ("psnr_patch_mean", "float | None", "dB, of one colour a patch."),
                ("explained_variance", "float | None", "1 - squared error / that of one colour an image."),
                ("mae_normalized", "float | None", "Mean absolute error of pixels in [-1, 1]."),
                ("verdict", "str", "suits, usable, does not suit or cannot tell."),
                ("reason", "str", "In a sentence."),
                ("agreement", "float | None", "Share of tokens as in fp32, with another --precision."),
                OUTPUT,
            ),
            frozenset({"agreement", "output"}),
        ),
    ),
    "predict": (
        Document(
            "one line an image, of a classifier",
            (
                PATH,
                ("label", "str", "The likeliest class; of a regression the first quantity."),
                ("score", "float", "Its probability; of a regression its value."),
                ("top", "list", "--top pairs of class and probability; of a regression all quantities."),
                ("labels", "list", "With several labels an image: pairs at or above --score-threshold."),
            ),
            frozenset({"labels"}),
        ),
        Document(
            "one line an image, of a segmenter",
            (
                PATH,
                ("output", "str", "PNG of the labels."),
                ("overlay", "str", "The image with its classes in colour, with --overlay."),
                ("classes", "dict[str, float]", "Share of the pixels by class, the largest first."),
            ),
            frozenset({"overlay"}),
        ),
        Document(
            "one line an image, of a detector",
            (
                PATH,
                (
                    "detections",
                    "list",
                    "label, score, box (x0, y0, x1, y1 in pixels of the image), and mask (COCO's run lengths) where "
                    "the model predicts masks.",
                ),
                ("output", "str", "Picture of the boxes, with -o."),
            ),
            frozenset({"output"}),
        ),
    ),
    "embed": (
        Document(
            "one line an image",
            (
                PATH,
                ("features", "list", "D numbers, or with --pool none N lists of D."),
                ("label", "str", "Where the images have classes."),
            ),
            frozenset({"label"}),
        ),
        Document(
            "one document, with --query",
            (
                ("query", "str", "The image."),
                ("neighbours", "list", "path and similarity (cosine), the nearest first."),
                OUTPUT,
            ),
        ),
    ),
    "mask-preview": (
        Document(
            "one line an image",
            (
                PATH,
                ("grid", "list[int]", "Rows and columns of patches."),
                ("num_masked", "int", "Hidden patches."),
                ("mask", "list[list[int]]", "1 for a hidden patch."),
                OUTPUT,
                (
                    "masked_accuracy",
                    "float",
                    "Share of hidden patches whose token the model names, with --model and a picture.",
                ),
            ),
            frozenset({"masked_accuracy"}),
        ),
        Document(
            "one document, with --stats",
            (
                ("masks", "int", ""),
                ("grid", "list[int]", "Rows and columns of patches."),
                ("num_masked", "dict", "mean, min and max of the hidden patches of a mask."),
                ("position_probability", "list[list[float]]", "How often each patch is hidden."),
                (
                    "blocks",
                    "dict",
                    "mean and sd of blocks a mask; right_neighbour_masked: how often the right neighbour of a hidden "
                    "patch is hidden too; components: connected regions a mask.",
                ),
                ("histograms", "dict", "Masks by their number of blocks; blocks by their area in patches."),
                OUTPUT,
            ),
            frozenset({"output"}),
        ),
        Document(
            "one document, with --animate",
            (("run", "str", ""), ("steps", "list[int]", "Of the previews that it shows."), OUTPUT),
        ),
    ),
    "attn-map": (
        Document(
            "one line an image",
            (
                PATH,
                ("model", "str", "As it was given."),
                ("layer", "int", "Index of the block, from 0."),
                ("grid", "list[int]", "Rows and columns of patches."),
                OUTPUT,
                (
                    "maps",
                    "list",
                    "One entry a point and head: point (x, y in pixels of the image), patch (row, column), head "
                    "(a number, mean or rollout), attention (rows of numbers), cls (share of the class token). "
                    "attention and cls sum to 1.",
                ),
            ),
        ),
    ),
    "report": (
        Document(
            "one document",
            (
                ("page", "str", "The file."),
                (
                    "runs",
                    "list",
                    "Of each run its name, command, state, step, the step of its figures (measured_step), verdict, "
                    "figures, facts, unreadable images, next commands (next_notes: what to add to one) and, of a "
                    "finetuned model, classes.",
                ),
                ("differing", "list", "Settings in which the runs differ."),
                ("charts", "list", "Curves, with their baselines."),
                ("previews", "list", "Of each run its name and its pictures: step and path."),
            ),
        ),
    ),
    "env": (
        Document(
            "one document",
            (
                ("beit", "str", "Version."),
                ("python", "str", ""),
                ("system", "str", ""),
                ("cpu_cores", "int", "That this process may use."),
                ("memory_gib", "float | None", ""),
                ("torch", "str", "Version, or why it cannot be imported; what it tells is then missing."),
                ("cpu_instructions", "str", "Of torch's kernels."),
                ("cpu_bf16", "bool", "Whether the processor multiplies bf16."),
                ("cpu_onednn_fp32", "bool", "Whether oneDNN can take fp32 products."),
                ("threads", "int", "Of torch."),
                ("cuda", "str | None", "Version that torch was built for."),
                ("cuda_available", "bool", ""),
                ("mps_available", "bool", ""),
                ("gpus", "list[str]", ""),
                ("cudnn", "int", ""),
                ("nccl", "str | None", ""),
                ("packages", "dict[str, str]", "Versions."),
                ("cache", "str", "Folder."),
                ("cache_free_gib", "float", ""),
                ("variables", "dict[str, str]", "That concern beit; secret ones say only that they are set."),
            ),
            frozenset({"gpus", "cudnn", "nccl", "cache_free_gib"}),
        ),
    ),
}
