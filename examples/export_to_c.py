"""Exporting: a model becomes a shared library with a C header, and a C program uses it.

Where no C compiler is installed the library is called from Python only, which needs neither compiler nor frontend.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import flambeau as fb
from flambeau import nn
from flambeau.runtime.library import load

PROGRAM = """
#include <stdio.h>
#include "classifier.h"

int main(void) {
    float x[3 * 4], y[3 * 2];
    for (int i = 0; i < 12; i++) x[i] = (float)i / 8;
    classifier_t* model = NULL;
    if (classifier_create(&model, 1) != CLASSIFIER_OK) return 1;
    int status = classifier_run(model, 3, x, y);
    if (status != CLASSIFIER_OK) {
        fprintf(stderr, "%s\\n", classifier_error(status));
        return 1;
    }
    for (int i = 0; i < 6; i++) printf("%.9g\\n", y[i]);
    classifier_destroy(model);
    return 0;
}
"""

fb.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 2), nn.Softmax(dim=1))

# The first axis of the input becomes an argument of the C function: any number of rows.
exported = fb.export(model, (fb.zeros(8, 4),), dynamic_shapes={0: {0: "N"}}, name="classifier")
print(exported)

x = (np.arange(12, dtype=np.float32) / 8).reshape(3, 4)
expected = exported.run(x)
with fb.no_grad():
    np.testing.assert_allclose(expected, model(fb.from_numpy(x)).numpy(), rtol=1e-5)

with tempfile.TemporaryDirectory() as folder:
    library = exported.save(Path(folder) / "classifier.so")
    print(f"{library.name}: {library.stat().st_size / 1024:.0f} KiB")

    loaded = load(library)
    assert loaded(x).tobytes() == expected.tobytes()
    print("the library from Python: the same bits")

    compiler = shutil.which("cc")
    if compiler is None:
        print("no C compiler is installed")
    else:
        source, program = Path(folder) / "main.c", Path(folder) / "main"
        source.write_text(PROGRAM)
        command = [compiler, str(source), str(library), f"-Wl,-rpath,{folder}", "-o", str(program)]
        subprocess.run(command, check=True)
        said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
        found = np.array(said.split(), np.float32).reshape(3, 2)
        assert found.tobytes() == expected.tobytes()
        print("the library from C: the same bits")
        print(found)
