package dev.edgebert;

import java.nio.ByteBuffer;

/** The C API, as edgebert_jni.cc has it. */
final class Native {
    static {
        System.loadLibrary("edgebert_jni");
    }

    private Native() {}

    static native long load(byte[] path, ByteBuffer memory, byte[] isa, int threads, boolean verify, byte[] publicKey);
    static native void free(long model);
    static native Object[] describe(long model);
    static native long open(long model, int maxLength, int longTexts, int stride, int batchTokens);
    static native void close(long session);
    static native void cancel(long session, boolean isCancelled);
    static native Object[] ask(int call, long model, long session, byte[] texts, int[] ends, byte[] others,
            int[] otherEnds, byte[] name, byte[] prompt, int[] numbers);
}
