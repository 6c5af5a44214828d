/* The text that `qsae convert --check` runs through a model: pieces of plain and of chat
 * text, each a sequence of its own. The words are of no importance, only that they are
 * ordinary. */

#ifndef QSAE_TOOLS_CHECK_TEXT_H
#define QSAE_TOOLS_CHECK_TEXT_H

static const char *const check_pieces[] = {
    "The harbour was quiet before the first boats came in. A man in a blue coat swept the "
    "steps of the fish market, and two gulls watched him from the roof. By seven the "
    "square had filled: crates of ice, baskets of mackerel, a boy counting coins on an "
    "upturned box. Prices were shouted, laughed at and shouted again. When the bell of "
    "the old church rang nine, most of the catch was gone, and the cafes put out their "
    "chairs for people who had slept late.",

    "<|im_start|>user\nHow do I keep a sourdough starter alive while I am away for two "
    "weeks?<|im_end|>\n<|im_start|>assistant\nFeed it once, let it rise for an hour, and "
    "put it in the fridge with a loose lid. Cold slows the yeast down, so two weeks are no "
    "problem. When you are back, throw away half of it and feed the rest with flour and "
    "water on two days in a row.<|im_end|>\n<|im_start|>user\nAnd if it smells of "
    "vinegar?<|im_end|>\n<|im_start|>assistant\nThat is normal after a rest. It only wants "
    "food.<|im_end|>\n",

    "A binary search halves the part of a sorted list in which a value can be. With 1,000 "
    "entries it needs at most 10 steps; with a million, 20.\n\n"
    "def find(items, value):\n    low, high = 0, len(items)\n    while low < high:\n"
    "        middle = (low + high) // 2\n        if items[middle] < value:\n"
    "            low = middle + 1\n        else:\n            high = middle\n"
    "    return low\n",

    "<|im_start|>user\nWhat is the capital of Australia?<|im_end|>\n"
    "<|im_start|>assistant\nThe capital of Australia is Canberra. Many people think of "
    "Sydney, which is the largest city, but Canberra was chosen in 1908 and built for the "
    "purpose.<|im_end|>\n",
};

#endif
