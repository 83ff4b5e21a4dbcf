import dev.edgebert.Answer;
import dev.edgebert.EdgeBertException;
import dev.edgebert.EdgeBertException.Status;
import dev.edgebert.Model;
import dev.edgebert.Options;
import dev.edgebert.Session;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collections;
import java.util.List;

/** `answers FOLDER`: prints what the models of a folder answer, floats as bits. `checks FOLDER`: fails, or prints ok. */
public final class BindingTest {
    private static Path folder;
    private static List<String> texts;
    private static List<String> others;

    public static void main(String[] arguments) throws Exception {
        folder = Paths.get(arguments[1]);
        texts = read("texts");
        others = read("others");
        if (arguments[0].equals("answers")) {
            answers();
        } else {
            checks();
            System.out.println("ok");
        }
    }

    private static List<String> read(String name) throws Exception {
        List<String> found = new ArrayList<>();
        for (String line : Files.readAllLines(folder.resolve(name))) {
            found.add(new String(Base64.getDecoder().decode(line), StandardCharsets.UTF_8));
        }
        return found;
    }

    private static String file(String name) {
        return folder.resolve(name + ".onnx").toString();
    }

    private static void print(String name, float[][] rows, boolean[] isTruncated) {
        System.out.println("== " + name);
        for (float[] row : rows) {
            StringBuilder line = new StringBuilder();
            for (float x : row) line.append(String.format("%08x", Float.floatToRawIntBits(x)));
            System.out.println(line);
        }
        System.out.println(Arrays.toString(isTruncated));
    }

    private static void print(String name, Answer[][] answers) {
        System.out.println("== " + name);
        for (Answer[] group : answers) {
            List<String> line = new ArrayList<>();
            for (Answer a : group) {
                String label = Base64.getEncoder().encodeToString(a.label.getBytes(StandardCharsets.UTF_8));
                String score = String.format("%016x", Double.doubleToRawLongBits(a.score));
                line.add(label + "," + a.index + "," + a.begin + "," + a.end + "," + score);
            }
            System.out.println(String.join(";", line));
        }
    }

    private static void answers() {
        Session.Settings windows = new Session.Settings();
        windows.maxLength = 16;
        windows.stride = 3;
        windows.longTexts = Session.LongTexts.WINDOWS;
        try (Model model = Model.load(file("embedding")); Session session = model.open()) {
            print("embed", session.embed(texts, new Options()), session.isTruncated());
            Options options = new Options();
            options.prompt = "über 😀 ";
            options.width = 5;
            options.normalize = true;
            try (Session other = model.open(windows)) {
                print("embed windows", other.embed(texts, options), other.isTruncated());
            }
            options.prompt = null;
            options.promptName = "passage";
            print("embed prompt", session.embed(texts, options), session.isTruncated());
        }
        try (Model model = Model.load(file("text-classification")); Session session = model.open()) {
            print("classify", session.classify(texts, null, new Options()));
            Options options = new Options();
            options.topK = 2;
            options.function = Options.Function.SIGMOID;
            print("classify pairs", session.classify(texts, others, options));
            options.label = model.labels.get(1);
            print("rank", new Answer[][] {session.rank("the router ? 😀", texts, options)});
        }
        try (Model model = Model.load(file("token-classification")); Session session = model.open()) {
            for (Options.Aggregation aggregation : Options.Aggregation.values()) {
                Options options = new Options();
                options.aggregation = aggregation;
                options.ignored = aggregation == Options.Aggregation.MAX ? Arrays.asList("LOC", "MISC") : null;
                print("label " + aggregation.name().toLowerCase(), session.labelTokens(texts, options));
            }
        }
        try (Model model = Model.load(file("question-answering")); Session session = model.open()) {
            Options options = new Options();
            options.topK = 3;
            options.allowsNoAnswer = true;
            options.maxAnswerTokens = 4;
            print("answer", session.answer(others, texts, options));
        }
        try (Model model = Model.load(file("fill-mask")); Session session = model.open()) {
            Options options = new Options();
            options.topK = 7;
            print("fill", session.fillMask("😀 the [MASK] is [MASK] é", options));
        }
    }

    private interface Call {
        Object run() throws Exception;
    }

    private static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    private static void fails(Status status, String message, Call call) throws Exception {
        try {
            call.run();
        } catch (EdgeBertException error) {
            check(error.status == status && error.getMessage().contains(message), error.status + ": " + error.getMessage());
            return;
        }
        throw new AssertionError("no failure: " + message);
    }

    private static void isClosed(Call call) throws Exception {
        try {
            call.run();
        } catch (IllegalStateException error) {
            check(error.getMessage().contains("is closed"), error.getMessage());
            return;
        }
        throw new AssertionError("no failure after close");
    }

    private static void checks() throws Exception {
        Options options = new Options();
        byte[] bytes = Files.readAllBytes(Paths.get(file("embedding")));
        Model model = Model.load(file("embedding"));
        Session session = model.open();
        float[][] expected = session.embed(texts, options);
        check(model.task.equals("embedding") && model.hiddenSize == 24 && model.maxLength == 48, "what a model says");
        check(session.embed(Collections.emptyList(), options).length == 0, "no texts");
        check(session.embed(Arrays.asList("a\0b"), options).length == 1, "NUL in a text");

        // from memory: arrays, buffers that begin elsewhere, mapped files
        Model.Options loading = new Model.Options();
        loading.verify = true;
        loading.threads = 1;
        ByteBuffer shifted = ByteBuffer.allocateDirect(bytes.length + 7);
        shifted.position(3);
        shifted.put(bytes).flip().position(3);
        ByteBuffer mapped;
        try (FileChannel channel = FileChannel.open(Paths.get(file("embedding")))) {
            mapped = channel.map(FileChannel.MapMode.READ_ONLY, 0, bytes.length);
        }
        for (ByteBuffer buffer : new ByteBuffer[] {ByteBuffer.wrap(bytes), shifted, mapped}) {
            try (Model other = Model.load(buffer, loading); Session its = other.open()) {
                System.gc(); // the model keeps the buffer
                check(other.threads == 1, "threads");
                check(Arrays.deepEquals(its.embed(texts, options), expected), "answers of a model in memory");
            }
        }

        // errors
        String emoji = folder.resolve("no such 😀.onnx").toString();
        fails(Status.MODEL_FORMAT, "no such 😀.onnx", () -> Model.load(emoji));
        fails(Status.INVALID_INPUT, "path is null", () -> Model.load((String) null));
        fails(Status.INVALID_INPUT, "path holds a NUL", () -> Model.load(file("embedding") + "\0.onnx"));
        fails(Status.MODEL_FORMAT, "", () -> Model.load(Arrays.copyOf(bytes, bytes.length / 2), loading));
        fails(Status.MODEL_FORMAT, "", () -> Model.load(new byte[0], loading));
        byte[] changed = bytes.clone();
        changed[bytes.length * 3 / 4] ^= 1;
        fails(Status.MODEL_FORMAT, "", () -> Model.load(changed, loading));
        loading.publicKey = new byte[31];
        fails(Status.INVALID_INPUT, "31 bytes", () -> Model.load(bytes, loading));
        loading.publicKey = Files.readAllBytes(folder.resolve("key"));
        Model.load(bytes, loading).close();
        loading.publicKey[5] ^= 1;
        fails(Status.MODEL_FORMAT, "not signed with this key", () -> Model.load(bytes, loading));
        loading.publicKey = null;
        loading.isa = "abacus";
        fails(Status.UNAVAILABLE, "abacus", () -> Model.load(bytes, loading));
        String lone = "ab\ud83d c";
        fails(Status.INVALID_INPUT, "text 1 is not valid Unicode: it has a lone surrogate, \\ud83d, at 2",
                () -> session.embed(Arrays.asList("a", lone), options));
        fails(Status.INVALID_INPUT, "text 0 is null", () -> session.embed(Collections.singletonList(null), options));
        fails(Status.INVALID_INPUT, "eb_answer does not fit this file", () -> session.answer(texts, others, options));
        fails(Status.INVALID_INPUT, "a context for each text: found 1", () -> session.answer(texts, texts.subList(0, 1), options));
        fails(Status.INVALID_INPUT, "NULL", () -> session.answer(texts, null, options));
        fails(Status.INVALID_INPUT, "", () -> session.rank(null, texts, options));
        Session.Settings negative = new Session.Settings();
        negative.maxLength = -1;
        fails(Status.INVALID_INPUT, "max_length", () -> model.open(negative));
        fails(Status.UNSUPPORTED, "tokenizer", () -> {
            try (Model silent = Model.load(file("silent"))) {
                return silent.open();
            }
        });

        // sessions of several threads
        List<Thread> threads = new ArrayList<>();
        int[] right = new int[1];
        for (int i = 0; i < 4; ++i) {
            threads.add(new Thread(() -> {
                try (Session own = model.open()) {
                    for (int k = 0; k < 5; ++k) {
                        boolean isRight = Arrays.deepEquals(own.embed(texts, options), expected)
                                && Arrays.deepEquals(session.embed(texts, options), expected); // and one they share
                        synchronized (right) {
                            right[0] += isRight ? 1 : 0;
                        }
                    }
                }
            }));
        }
        for (Thread thread : threads) thread.start();
        for (Thread thread : threads) thread.join();
        check(right[0] == 20, "answers in threads: " + right[0]);

        // cancelling, before a call and in one that takes seconds otherwise
        session.cancel(true);
        fails(Status.CANCELLED, "cancelled", () -> session.embed(texts, options));
        session.cancel(false);
        Thread canceller = new Thread(() -> {
            try {
                Thread.sleep(50);
            } catch (InterruptedException error) {
                throw new AssertionError(error);
            }
            session.cancel(true);
        });
        canceller.start();
        List<String> many = Collections.nCopies(100000, "the router restarts");
        fails(Status.CANCELLED, "cancelled", () -> session.embed(many, options));
        canceller.join();
        session.cancel(false);

        // closing: twice, the model before its session, use after it
        model.close();
        model.close();
        isClosed(model::open);
        check(Arrays.deepEquals(session.embed(texts, options), expected), "a session after its model was closed");
        session.close();
        session.close();
        isClosed(() -> session.embed(texts, options));
        isClosed(() -> {
            session.cancel(true);
            return null;
        });
        for (int i = 0; i < 200; ++i) {
            try (Model again = Model.load(file("embedding"), new Model.Options()); Session its = again.open()) {
                float[][] row = its.embed(texts.subList(i % texts.size(), i % texts.size() + 1), options);
                check(Arrays.equals(row[0], expected[i % texts.size()]), "cycle " + i);
            }
        }
    }
}
