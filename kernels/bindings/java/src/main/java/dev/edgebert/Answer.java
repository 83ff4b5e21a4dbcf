package dev.edgebert;

/** One answer of a call; what its task does not have is "" or 0. */
public final class Answer {
    /** Of the text, the token or the entity (aggregated: without B- or I-); fillMask: the token's text. */
    public final String label;
    /** classify: the label's place in Model.labels; rank: the text's in the list; labelTokens: the token's in its row, -1
     * for entities; answer: the question's in the list; fillMask: the token's id. */
    public final int index;
    /** labelTokens and answer: text.substring(begin, end). */
    public final int begin;
    public final int end;
    public final double score;

    Answer(String label, int index, int begin, int end, double score) {
        this.label = label;
        this.index = index;
        this.begin = begin;
        this.end = end;
        this.score = score;
    }
}
