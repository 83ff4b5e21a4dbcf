package dev.edgebert;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/**
 * One caller's place at a model. Calls from several threads wait for one another: with a session for each thread they
 * go on side by side. Places are in UTF-16 units, as Java counts.
 */
public final class Session implements AutoCloseable {
    /** What becomes of texts that are too long: their end is left out, or windows give one answer. */
    public enum LongTexts { DEFAULT, TRUNCATED, WINDOWS }

    /** Of all of its calls; 0 is the default. */
    public static final class Settings {
        /** Tokens of a row or window. */
        public int maxLength;
        public LongTexts longTexts = LongTexts.DEFAULT;
        /** Tokens that windows have in common. */
        public int stride;
        /** Tokens computed together: a matter of memory and speed, not of results. */
        public int batchTokens;
    }

    private enum Call {
        EMBED(""), CLASSIFY("pair"), RANK("query"), LABEL_TOKENS("ignored label"), ANSWER("context"), FILL_MASK("");

        final String other; // what it takes beside texts

        Call(String other) {
            this.other = other;
        }
    }

    private final Model model;
    private final Object cancelling = new Object(); // `cancel` does not wait for the running call, only `close` for it
    private long handle;
    private boolean[] isTruncated = {};

    Session(Model model, long handle) {
        this.model = model;
        this.handle = handle;
    }

    /** A row for each text. */
    public float[][] embed(List<String> texts, Options options) {
        float[] data = (float[]) ask(Call.EMBED, texts, null, options.promptName, options)[1];
        float[][] rows = new float[texts.size()][];
        for (int i = 0; i < rows.length; ++i) {
            int width = data.length / rows.length;
            rows[i] = Arrays.copyOfRange(data, i * width, (i + 1) * width);
        }
        return rows;
    }

    /** Of each text its labels, best first; with `pairs`, which may be null, of each text and its pair. */
    public Answer[][] classify(List<String> texts, List<String> pairs, Options options) {
        return answers(ask(Call.CLASSIFY, texts, pairs, null, options));
    }

    /** The texts, best first. */
    public Answer[] rank(String query, List<String> texts, Options options) {
        return answers(ask(Call.RANK, texts, Collections.singletonList(query), options.label, options))[0];
    }

    /** Of each text its tokens or entities, in their order. */
    public Answer[][] labelTokens(List<String> texts, Options options) {
        return answers(ask(Call.LABEL_TOKENS, texts, options.ignored, null, options));
    }

    /** Of each question the parts of its context that answer it, best first. */
    public Answer[][] answer(List<String> questions, List<String> contexts, Options options) {
        return answers(ask(Call.ANSWER, questions, contexts, null, options));
    }

    /** Of each mask in the text, tokens for it, likeliest first. */
    public Answer[][] fillMask(String text, Options options) {
        return answers(ask(Call.FILL_MASK, Collections.singletonList(text), null, null, options));
    }

    private synchronized Object[] ask(
            Call call, List<String> texts, List<String> others, String name, Options options) {
        Texts first = new Texts("text", texts);
        Texts second = others == null ? null : new Texts(call.other, others);
        boolean isPaired = second != null && (call == Call.CLASSIFY || call == Call.ANSWER);
        if (isPaired && second.ends.length != first.ends.length) {
            throw new EdgeBertException("there is a " + call.other + " for each text: found " + second.ends.length
                    + ", expected " + first.ends.length);
        }
        Object[] found = Native.ask(call.ordinal(), model.live(), live(), first.bytes, first.ends,
                second == null ? null : second.bytes, second == null ? null : second.ends,
                Texts.name("name", name), Texts.name("prompt", options.prompt), options.numbers());
        byte[] told = (byte[]) found[0];
        isTruncated = new boolean[told.length];
        for (int i = 0; i < told.length; ++i) isTruncated[i] = told[i] != 0;
        return found;
    }

    private static Answer[][] answers(Object[] found) {
        int[] bounds = (int[]) found[1];
        byte[] labels = (byte[]) found[2];
        int[] numbers = (int[]) found[3];
        double[] scores = (double[]) found[4];
        Answer[][] answers = new Answer[bounds.length - 1][];
        int begin = 0;
        for (int i = 0; i < answers.length; ++i) {
            answers[i] = new Answer[bounds[i + 1] - bounds[i]];
            for (int k = bounds[i]; k < bounds[i + 1]; ++k) {
                String label = Texts.decode(labels, begin, numbers[4 * k]);
                begin = numbers[4 * k];
                answers[i][k - bounds[i]] =
                        new Answer(label, numbers[4 * k + 1], numbers[4 * k + 2], numbers[4 * k + 3], scores[k]);
            }
        }
        return answers;
    }

    /** Whether tokens of each text of the last call were cut off. */
    public synchronized boolean[] isTruncated() {
        return isTruncated.clone();
    }

    /** From any thread: true ends the running call, and later ones until it is false, with CANCELLED. */
    public void cancel(boolean isCancelled) {
        synchronized (cancelling) {
            Native.cancel(live(), isCancelled);
        }
    }

    /** When the running call is through. */
    @Override
    public synchronized void close() {
        synchronized (cancelling) {
            if (handle == 0) return;
            Native.close(handle);
            handle = 0;
        }
        model.leave();
    }

    private long live() {
        if (handle == 0) throw new IllegalStateException("the session is closed");
        return handle;
    }
}
