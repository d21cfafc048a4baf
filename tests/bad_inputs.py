"""Command lines that are wrong, by chapter, and how the message begins that each is refused with.

``bad_files.py`` makes the files that they name, and ``errors_page.py`` a page of what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

FACTORY = ("--factory", "conftest:tiny_mlp")
USUAL = ["--data", "blobs.npz", "--target", "params=0.5", "--epochs", "3"]


@dataclass(frozen=True)
class BadInput:
    """A command line, and how the message begins that it is refused with."""

    arguments: list[str]
    message: str


def finetune(model: str = "mlp.pt2", *more: str, data: str = "blobs.npz", target: str = "params=0.5") -> list[str]:
    """A short run that differs from one that works in what is named."""
    return ["finetune", model, "--data", data, "--target", target, "--epochs", "3", *more]


MODELS = {
    "a missing model": (finetune("none.pt2"), "Cannot read model 'none.pt2': no such file."),
    "an unknown kind of model": (finetune("model.h5"), "Cannot read model 'model.h5': a model is a .pt2 file of"),
    "an unreadable archive": (finetune("noise.pt2"), "Cannot read model 'noise.pt2' as an archive of torch.export.sav"),
    "a truncated archive": (finetune("cut.pt2"), "Cannot read model 'cut.pt2' as an archive of torch.export.save: it"),
    "unreadable weights": (finetune("noise.pt", *FACTORY), "Cannot read model 'noise.pt': the file is damaged or not"),
    "truncated weights": (finetune("cut.pt", *FACTORY), "Cannot read model 'cut.pt'"),
    "truncated safetensors": (finetune("cut.safetensors", *FACTORY), "Cannot read model 'cut.safetensors' ("),
    "an unreadable ONNX file": (finetune("noise.onnx"), "Cannot read model 'noise.onnx' as an ONNX file ("),
    "a pickled module": (finetune("pickled.pt"), "Model 'pickled.pt' is a pickled object; loading it would run code"),
    "a TorchScript archive": (finetune("script.pt"), "Model 'script.pt' is a TorchScript archive, which runs code"),
    "a checkpoint without weights": (
        finetune("empty.pt"),
        "Model 'empty.pt' holds a dict, which is neither weights nor a mod",
    ),
    "weights without a factory": (finetune("weights.pt"), "Model 'weights.pt' holds weights, not a module. Name the"),
    "a factory that cannot be imported": (
        finetune("weights.pt", "--factory", "nowhere:f"),
        "--factory 'nowhere:f': module 'nowhere' cannot be imported (ModuleNotFoundError",
    ),
    "a factory that is misspelt": (
        finetune("weights.pt", "--factory", "conftest"),
        "--factory 'conftest' does not have the form package.module:function.",
    ),
    "a factory that returns no module": (
        finetune("weights.pt", "--factory", "builtins:dict"),
        "--factory 'builtins:dict' returned a dict, not a torch.nn.Module.",
    ),
    "factory arguments that are not JSON": (
        finetune("weights.pt", *FACTORY, "--factory-args", "width=64"),
        "--factory-args 'width=64' is not JSON (",
    ),
    "factory arguments that are not an object": (
        finetune("weights.pt", *FACTORY, "--factory-args", "[1]"),
        "--factory-args '[1]' is not a JSON object of keyword arguments.",
    ),
    "arguments that the factory does not take": (
        finetune("weights.pt", *FACTORY, "--factory-args", '{"width": 64}'),
        "--factory 'conftest:tiny_mlp' failed when it was called with {'width': 64} (TypeError",
    ),
    "weights of another module": (
        finetune("other.pt", *FACTORY),
        "The weights in 'other.pt' do not fit the module of --factory 'conftest:tiny_mlp': the file lacks",
    ),
    "weights of another width": (
        finetune("wide.pt", *FACTORY),
        "The weights in 'wide.pt' do not fit the module of --factory 'conftest:tiny_mlp': '0.weight' is (7, 8) in",
    ),
    "a folder that is not a model": (finetune("full"), "Cannot read model 'full': config.json is missing."),
    "a model folder with code of its own": (
        finetune("hf_code"),
        "Model 'hf_code': config.json names the architecture 'OwnNet', which is not a model of transformers",
    ),
    "a model folder without weights": (finetune("hf_bare"), "Model 'hf_bare' has no weights: neither model.safetens"),
    "a model folder that points elsewhere": (
        finetune("hf_shards"),
        "Model 'hf_shards': its part '../weights.pt' is missing or outside the folder.",
    ),
    "a model folder with a damaged config": (
        finetune("hf_json"),
        "Cannot read model 'hf_json': config.json is damaged (",
    ),
    "a module without data to inspect it with": (
        ["inspect", "weights.pt", *FACTORY],
        "Model 'weights.pt' does not record its inputs.",
    ),
    "a model that cannot be captured": (
        finetune("wanderer.pt", "--factory", "bad_files:wanderer"),
        "torch.export cannot capture Sequential: ",
    ),
    "nothing that can be removed": (finetune("norm.pt2"), "no channel of this model can be removed."),
    "nothing to inspect": (["inspect", "norm.pt2"], "no channel of this model can be removed."),
}
RUNS_CODE = " has parts that would run code, or claim more data than the file holds, when loaded ("
HOSTILE = {
    "a pickle that runs code": (finetune("trap.pt"), "Model 'trap.pt' is a pickled object; loading it would run code"),
    "a pickle within an archive": (finetune("inputs.pt2"), f"Model 'inputs.pt2'{RUNS_CODE}data/sample_inputs/model."),
    "an operator that runs commands": (finetune("operator.pt2"), f"Model 'operator.pt2'{RUNS_CODE}the operator 'torch"),
    "an operator that writes files": (finetune("file.pt2"), f"Model 'file.pt2'{RUNS_CODE}the operator 'torch.ops.aten"),
    "a size that runs code": (finetune("size.pt2"), f"Model 'size.pt2'{RUNS_CODE}the size "),
    "a name that runs code": (finetune("name.pt2"), f"Model 'name.pt2'{RUNS_CODE}the name 'relu=print(1)'"),
    "an unknown container": (finetune("basket.pt2"), "Cannot read model 'basket.pt2': it takes or returns shop.Bask"),
    "a container that imports": (finetune("enum.pt2"), f"Model 'enum.pt2'{RUNS_CODE}a container that imports what it"),
    "a tensor of absurd size": (finetune("huge.pt2"), f"Model 'huge.pt2'{RUNS_CODE}a size of 99999999999"),
    "a path out of a model": (finetune("extra.pt2"), "Cannot read model 'extra.pt2' as an archive of torch.export.sa"),
    "two parts of one name": (finetune("twice.pt2"), "Cannot read model 'twice.pt2' as an archive of torch.export.sa"),
    "a path out of weights": (finetune("moved.pt", *FACTORY), "Cannot read model 'moved.pt': its part '/etc/outside'"),
    "a zip bomb": (finetune(data="bomb.npz"), "Cannot read data 'bomb.npz' as an .npz file: it would unpack to"),
    "an array of absurd size": (finetune(data="absurd.npy"), "Cannot read data 'absurd.npy': its header claims"),
    "an array of objects": (finetune(data="objects.npz"), "Cannot read data 'objects.npz, x_train': it holds Python"),
}
DATA = {
    "missing data": (finetune(data="none.npz"), "Cannot read data 'none.npz': no such file."),
    "unknown data": (finetune(data="table.xls"), "Cannot read data 'table.xls': data is 'digits', an .npz file or"),
    "unreadable data": (
        finetune(data="noise.npz"),
        "Cannot read data 'noise.npz' as an .npz file: it is not a zip arch",
    ),
    "truncated data": (finetune(data="cut.npz"), "Cannot read data 'cut.npz' as an .npz file: it is not a zip archive"),
    "arrays under other names": (finetune(data="nameless.npz"), "Data 'nameless.npz' holds z. It needs x_train and"),
    "arrays of letters": (finetune(data="letters.npz"), "Data 'letters.npz': x_train is <U1 of shape (1,); an array"),
    "more inputs than labels": (finetune(data="uneven.npz"), "Data 'uneven.npz', x_train: Inputs and targets have"),
    "too few samples": (finetune(data="few.npz"), "Data 'few.npz' has 5 training samples, too few to split a val"),
    "a wrong shape": (
        finetune(data="shape.npz"),
        "The model was exported for samples of shape (8,), but the data has (5,). Nothing was changed.",
    ),
    "labels out of range": (finetune(data="labels.npz"), "Label 3 of sample 0 in the train part is out of range: the"),
    "a value that is not finite": (
        finetune(data="nan.npz"),
        "Sample 0 of the test part has a value that is not finite in input 0 (60 such samples).",
    ),
    "regression targets for classes": (
        finetune("mlp.pt2", "--loss", "cross-entropy", data="floating.npz"),
        "The targets of the train part are floating-point numbers, not class labels. For regression pass --loss mse.",
    ),
    "a function that returns no data": (
        finetune(data="builtins:dict"),
        "'builtins:dict' must return Data or a dict wi",
    ),
    "a table without a target": (finetune(data="table.csv"), "Data 'table.csv' is a table. Nothing was changed. Name"),
    "a column that is not there": (
        finetune("mlp.pt2", "--target-column", "price", data="table.csv"),
        "Data 'table.csv' has no column 'price'. Nothing was changed. Name one of size, hue, sold by",
    ),
    "a missing target": (
        finetune("mlp.pt2", "--target-column", "sold", data="gap.csv"),
        "Data 'gap.csv': the target 'sold' is missing in line 7 (1 such lines).",
    ),
    "a table of ragged lines": (
        finetune("mlp.pt2", "--target-column", "hue", data="ragged.csv"),
        "Cannot read data 'ragged.csv' as a table (",
    ),
    "a table without rows": (
        finetune("mlp.pt2", "--target-column", "sold", data="header.csv"),
        "Data 'header.csv' has no rows below its header.",
    ),
    "sentences without a tokenizer": (finetune(data="sentences.tsv"), "Data 'sentences.tsv' is text. Nothing was ch"),
    "a missing tokenizer": (
        finetune("mlp.pt2", "--tokenizer", "none", data="sentences.tsv"),
        "--tokenizer 'none': no such folder.",
    ),
    "a folder that is not a tokenizer": (
        finetune("mlp.pt2", "--tokenizer", "full", data="sentences.tsv"),
        "--tokenizer 'full' cannot be read (",
    ),
    "a sentence without a label": (
        finetune("mlp.pt2", "--tokenizer", "full", data="labelless.tsv"),
        "Data 'labelless.tsv', line 2: a label and a sentence are expected.",
    ),
    "a folder without images": (finetune(data="nothing"), "Data 'nothing' is a folder without class folders of"),
    "images of different sizes": (
        finetune("mlp.pt2", "--split", "0.4,0.4,0.2", data="pictures"),
        "Image 'pictures/cats/2.png' has 5 x 4 pixels, but the first one has 4 x 4.",
    ),
    "a damaged image": (finetune(data="broken"), "Image 'broken/cats/"),
    "shares that do not add up": (
        finetune("mlp.pt2", "--split", "0.5,0.2"),
        "--split '0.5,0.2' is not a list of three shares that add up to 1.",
    ),
    "a malformed normalisation": (
        finetune("mlp.pt2", "--normalize", "0.5", data="pictures"),
        "--normalize '0.5' is neither 'imagenet' nor means and standard deviations of 1 or 3 channels.",
    ),
}
OPTIONS = {
    "a target of 0": (finetune(target="macs=0"), "Target 'macs=0' is out of range. A fraction of the dense model lies"),
    "a target of 2": (finetune(target="macs=2"), "Target 'macs=2' is out of range. A fraction of the dense model lies"),
    "a target of 1": (finetune(target="macs=1"), "Target 'macs=1' is out of range. A fraction of the dense model lies"),
    "an unknown unit": (
        finetune(target="flops=0.5"),
        "Target 'flops=0.5': 'flops' is not a unit of a target. Supported units are params, macs, bytes, int8_bytes, "
        "latency.",
    ),
    "a target out of reach": (
        finetune(target="params=0.01"),
        "Target params=0.01: at most 0 parameters cannot be reached",
    ),
    "a run folder that is not empty": (
        finetune("mlp.pt2", "-o", "full"),
        "'full' already exists. Nothing was written.",
    ),
    "a run folder that is a file": (finetune("mlp.pt2", "-o", "mlp.pt2"), "'mlp.pt2' already exists. Nothing was"),
    "a run folder under a file": (finetune("mlp.pt2", "-o", "mlp.pt2/run"), "Cannot write 'mlp.pt2/run': "),
    "an unknown device": (finetune("mlp.pt2", "--device", "abacus"), "Device 'abacus' cannot be used: "),
    "an unknown loss": (finetune("mlp.pt2", "--loss", "hinge"), "Unknown loss 'hinge': expected one of "),
    "a loss that cannot be imported": (
        finetune("mlp.pt2", "--loss", "nowhere:f"),
        "--loss 'nowhere:f': module 'nowhere' cannot be imported (ModuleNotFoundError",
    ),
    "resuming a model": (
        finetune("mlp.pt2", "--resume"),
        "'mlp.pt2' is not a run that can be resumed. Nothing was changed.",
    ),
    "resuming something that is not a run": (
        ["finetune", "--resume", "full"],
        "'full' is not a run that can be resumed. Nothing was changed.",
    ),
    "resuming nothing": (["finetune", "--resume"], "There is no unfinished run under 'runs'. Nothing was changed."),
    "resuming a missing run": (["finetune", "--resume", "-o", "none"], "Cannot read run 'none': no such folder."),
    "no model": (["finetune", "--data", "digits"], "MODEL and --target must be given. Nothing was changed. Pass it as"),
    "a rate of 0": (finetune("mlp.pt2", "--lr", "0"), "--lr = 0.0: expected a finite number above 0. Nothing was"),
    "a missing configuration": (["finetune", "--config", "none.toml"], "Cannot read configuration 'none.toml': "),
    "no configuration": (["finetune", "--config", "noise.pt2"], "noise.pt2 is not valid TOML: "),
    "an unknown setting": (
        ["finetune", "--config", "typo.toml"],
        "typo.toml, line 3: there is no setting [training] epo",
    ),
}
ARTIFACTS = {
    "no run to export": (["export"], "There is no finished run under 'runs'."),
    "a missing run to export": (["export", "none"], "Cannot read run 'none': no such folder."),
    "a folder that is not a run": (["export", "full"], "'full' is not a run: run.json is missing."),
    "a missing artifact": (["verify", "none.onnx", "--against", "full"], "'full' is not a run: run.json is"),
    "a missing artifact to time": (["bench", "none.onnx"], "Cannot read artifact 'none.onnx': no such file."),
    "another kind of artifact": (
        ["bench", "blobs.npz"],
        "Cannot read artifact 'blobs.npz': an artifact is an .onnx or a",
    ),
    "batch sizes that are none": (["bench", "x.onnx", "--batch", "1,x"], "--batch '1,x' is not a list of batch sizes."),
}
CHAPTERS = {
    "Models": MODELS,
    "Hostile files": HOSTILE,
    "Data": DATA,
    "Options": OPTIONS,
    "Runs and artifacts": ARTIFACTS,
}
CASES = {name: BadInput(*case) for chapter in CHAPTERS.values() for name, case in chapter.items()}
