package dev.edgebert;

import java.nio.charset.StandardCharsets;

/** A call that failed: why, as a status, and what happened, was expected and was found, as the message. */
public final class EdgeBertException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** The statuses of eb_status, in its order. */
    public enum Status { OK, INVALID_INPUT, MODEL_FORMAT, UNSUPPORTED, UNAVAILABLE, OUT_OF_MEMORY, INTERNAL, CANCELLED }

    public final Status status;

    EdgeBertException(String message) { // what is found in Java
        super(message);
        status = Status.INVALID_INPUT;
    }

    EdgeBertException(int status, byte[] message) { // what the library says
        super(new String(message, StandardCharsets.UTF_8));
        this.status = Status.values()[status];
    }
}
