/* Uses two exported libraries: the model answers, and the training step goes on where Python stopped.
 *
 * digits DATA ANSWERS EPOCHS: DATA holds the test set and then the training set, each as two int64 (images, 64 pixels),
 * the pixels as float32 and the labels as int64. The model's outputs for the test set, and then the loss of every step,
 * go to ANSWERS.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "digits_model.h"
#include "digits_step.h"

enum { PIXELS = 64, CLASSES = 10, BATCH = 64 };

typedef struct {
    int64_t count;
    float* images;
    int64_t* labels;
} dataset;

static void fail(const char* what) {
    fprintf(stderr, "digits: %s\n", what);
    exit(1);
}

static void take(void* to, size_t size, size_t count, FILE* file) {
    if (to == NULL || fread(to, size, count, file) != count) fail("the data file is too short");
}

static dataset read_dataset(FILE* file) {
    int64_t head[2];
    dataset d;
    take(head, sizeof head[0], 2, file);
    if (head[0] < 1 || head[0] > 100000 || head[1] != PIXELS) fail("the data file has another format");
    d.count = head[0];
    d.images = malloc((size_t)d.count * PIXELS * sizeof(float));
    d.labels = malloc((size_t)d.count * sizeof(int64_t));
    take(d.images, sizeof(float), (size_t)d.count * PIXELS, file);
    take(d.labels, sizeof(int64_t), (size_t)d.count, file);
    return d;
}

static int best(const float* outputs) {
    int found = 0;
    for (int c = 1; c < CLASSES; c++)
        if (outputs[c] > outputs[found]) found = c;
    return found;
}

int main(int argc, char** argv) {
    if (argc != 4) fail("usage: digits DATA ANSWERS EPOCHS");
    FILE* data = fopen(argv[1], "rb");
    FILE* answers = fopen(argv[2], "wb");
    int epochs = atoi(argv[3]);
    if (data == NULL || answers == NULL) fail("cannot open the files");
    dataset test = read_dataset(data), training = read_dataset(data);
    fclose(data);

    /* Inference: the number of images is an argument. */
    digits_model_t* model = NULL;
    int status = digits_model_create(&model, 1);
    if (status != 0) fail(digits_model_error(status));
    float* outputs = malloc((size_t)test.count * CLASSES * sizeof(float));
    if (outputs == NULL) fail("out of memory");
    status = digits_model_run(model, test.count, test.images, outputs);
    if (status != 0) fail(digits_model_error(status));
    fwrite(outputs, sizeof(float), (size_t)test.count * CLASSES, answers);
    int right = 0;
    for (int64_t i = 0; i < test.count; i++) right += best(outputs + i * CLASSES) == (int)test.labels[i];
    printf("C: %d of %d test images right\n", right, (int)test.count);
    digits_model_destroy(model);

    /* Training goes on: weights and the optimizer's state are in the handle. */
    digits_step_t* step = NULL;
    status = digits_step_create(&step, 1);
    if (status != 0) fail(digits_step_error(status));
    for (int epoch = 0; epoch < epochs; epoch++) {
        double total = 0;
        int64_t batches = training.count / BATCH;
        for (int64_t b = 0; b < batches; b++) {
            float loss;
            status = digits_step_run(step, training.images + b * BATCH * PIXELS, training.labels + b * BATCH, &loss);
            if (status != 0) fail(digits_step_error(status));
            fwrite(&loss, sizeof loss, 1, answers);
            total += loss;
        }
        printf("C: epoch %d, mean loss %.5f\n", epoch + 1, total / (double)batches);
    }
    digits_step_destroy(step);
    if (fclose(answers) != 0) fail("cannot write the answers");
    free(outputs);
    free(test.images);
    free(test.labels);
    free(training.images);
    free(training.labels);
    return 0;
}
