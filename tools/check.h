/* check.h: `qsae convert SAE --check MODEL`: does a converted SAE explain the site that it
 * says it reads? A short text goes through the model; what every SAE of the file makes of
 * its rows is printed. A wrong load (site, layer, orientation, normalisation) shows as an
 * explained variance near zero or below; a near miss (the layer beside, another site of
 * the residual stream) as a larger one there, which is looked at as well.
 *
 * Formulas, over tokens t with target y and reconstruction z, in double:
 *     L0      mean number of active features
 *     FVU     sum |y - z|^2 / sum |y - mean y|^2
 *     EV      1 - FVU    (SAELens from 6.45.1 on: 1 - E|y - z|^2 / (E|y|^2 - |E y|^2))
 *     cosine  mean of y.z / (|y| |z|)
 *     |z|/|y| sum |z| / sum |y|
 *     |f|     mean value of an active feature
 * Sinks are the first position of every sequence, and rows whose norm is above 10 times
 * the median (the rule of the published Qwen3 SAEs, which were trained without them);
 * both with and without them is printed. */

#ifndef QSAE_TOOLS_CHECK_H
#define QSAE_TOOLS_CHECK_H

#include "checked.h"
#include "qfile.h"

typedef struct sae_check sae_check;

/* Opens the model and makes tokens of the text file, or of the built-in text if it is
 * NULL. CMD_OK, or CMD_FAILED after a complaint. */
int check_open(const char *model_path, const char *text_path, sae_check **out);
void check_close(sae_check *c); /* NULL is a no-op */

/* 0 if the model has the site and the layer that the SAE reads and writes, with these
 * widths; else -1 with err set. c NULL: nothing is checked. */
int check_fits(const sae_check *c, const qsae_sae_record *r, char *err, size_t cap);

/* Prints the report of every SAE of the file. CMD_OK also where one looks wrong. */
int check_run(sae_check *c, const char *sae_path);

#endif
