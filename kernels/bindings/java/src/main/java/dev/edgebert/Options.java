package dev.edgebert;

import java.util.List;

/** How a call answers. Each comment names the calls that have the option; the others leave it unread. */
public final class Options {
    /** From logits to scores; DEFAULT: what the file asks for. */
    public enum Function { DEFAULT, NONE, SIGMOID, TANH, SOFTMAX }

    /** Labels of tokens, or of the entities they form, as eb_aggregation says. */
    public enum Aggregation { NONE, SIMPLE, FIRST, AVERAGE, MAX }

    /** All but embed and labelTokens: answers, best first; 0: all (answer: 1; fillMask: 5). */
    public int topK;
    /** classify, rank. */
    public Function function = Function.DEFAULT;
    /** labelTokens. */
    public Aggregation aggregation = Aggregation.NONE;
    /** labelTokens: labels that are left out; null: "O". */
    public List<String> ignored;
    /** rank: whose score ranks; needed where the file has several. */
    public String label;
    /** embed: one of the file's prompts; null: its default. */
    public String promptName;
    /** embed: a prompt of one's own; "" for none. */
    public String prompt;
    /** embed: leading dimensions to keep; 0: all. */
    public int width;
    /** embed: scale each to length 1, also where the file does not. */
    public boolean normalize;
    /** answer; 0: 15. */
    public int maxAnswerTokens;
    /** answer: "no answer", from 0 to 0, competes with the others. */
    public boolean allowsNoAnswer;
    /** answer: do not widen answers to whole words. */
    public boolean keepsTokens;

    int[] numbers() {
        return new int[] {topK, function.ordinal(), aggregation.ordinal(), width, normalize ? 1 : 0, maxAnswerTokens,
                allowsNoAnswer ? 1 : 0, keepsTokens ? 1 : 0};
    }
}
