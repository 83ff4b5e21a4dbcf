package dev.edgebert;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** A model file that is loaded. Any thread may use it; texts go through its sessions. */
public final class Model implements AutoCloseable {
    /** How a file is loaded. */
    public static final class Options {
        /** Instruction set; null: the best this CPU has. */
        public String isa;
        /** 0: the CPUs this process may use. */
        public int threads;
        /** Whether the file's content is compared with its hash too. */
        public boolean verify;
        /** The Ed25519 key, of 32 bytes, that the file must be signed with; null: none. */
        public byte[] publicKey;
    }

    /** Of the file's head, as "embedding". */
    public final String task;
    public final List<String> labels;
    public final int hiddenSize;
    /** Tokens at which texts are cut unless told otherwise. */
    public final int maxLength;
    public final int threads;

    private final ByteBuffer memory; // what the library reads as long as the model lives
    private long handle;
    private int numSessions;
    private boolean isClosed;

    private Model(byte[] path, ByteBuffer memory, Options options) {
        if (options.publicKey != null && options.publicKey.length != 32) {
            throw new EdgeBertException("publicKey has " + options.publicKey.length + " bytes, expected 32");
        }
        byte[] isa = Texts.name("isa", options.isa);
        this.memory = memory;
        handle = Native.load(path, memory, isa, options.threads, options.verify, options.publicKey);
        Object[] found = Native.describe(handle);
        int[] ends = (int[]) found[1];
        int[] sizes = (int[]) found[2];
        task = Texts.decode((byte[]) found[0], 0, ends[0]);
        List<String> names = new ArrayList<>();
        for (int i = 1; i < ends.length; ++i) names.add(Texts.decode((byte[]) found[0], ends[i - 1], ends[i]));
        labels = Collections.unmodifiableList(names);
        hiddenSize = sizes[0];
        maxLength = sizes[1];
        threads = sizes[2];
    }

    public static Model load(String path) {
        return load(path, new Options());
    }

    public static Model load(String path, Options options) {
        if (path == null) throw new EdgeBertException("path is null");
        return new Model(Texts.name("path", path), null, options);
    }

    public static Model load(byte[] file, Options options) {
        return load(ByteBuffer.wrap(file), options);
    }

    /** From the buffer's remaining bytes. A direct one, as a mapped file, is not copied, and must stay unchanged. */
    public static Model load(ByteBuffer file, Options options) {
        ByteBuffer bytes = file.slice();
        if (!bytes.isDirect()) {
            ByteBuffer copy = ByteBuffer.allocateDirect(bytes.remaining());
            copy.put(bytes);
            bytes = copy;
        }
        return new Model(null, bytes, options);
    }

    public Session open() {
        return open(new Session.Settings());
    }

    public synchronized Session open(Session.Settings settings) {
        if (isClosed) throw new IllegalStateException("the model is closed");
        Session session = new Session(this, Native.open(
                handle, settings.maxLength, settings.longTexts.ordinal(), settings.stride, settings.batchTokens));
        ++numSessions;
        return session;
    }

    /** Sessions that are open can be used on; the last of them frees the memory. */
    @Override
    public synchronized void close() {
        isClosed = true;
        freeIfUnused();
    }

    synchronized void leave() {
        --numSessions;
        freeIfUnused();
    }

    private void freeIfUnused() {
        if (isClosed && numSessions == 0 && handle != 0) {
            Native.free(handle);
            handle = 0;
        }
    }

    /** For a session, which keeps the model from being freed. */
    long live() {
        return handle;
    }
}
