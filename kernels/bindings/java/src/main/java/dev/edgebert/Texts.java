package dev.edgebert;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.List;

/** Texts as UTF-8, one behind the other, with the end of each. */
final class Texts {
    final byte[] bytes;
    final int[] ends;

    Texts(String what, List<String> texts) {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        ends = new int[texts.size()];
        int i = 0;
        for (String text : texts) {
            ByteBuffer encoded = encode(what + " " + i, text);
            all.write(encoded.array(), encoded.arrayOffset(), encoded.remaining());
            ends[i++] = all.size();
        }
        bytes = all.toByteArray();
    }

    private static ByteBuffer encode(String what, String text) {
        if (text == null) throw new EdgeBertException(what + " is null");
        CharBuffer units = CharBuffer.wrap(text);
        try {
            return StandardCharsets.UTF_8.newEncoder().encode(units);
        } catch (CharacterCodingException error) {
            throw new EdgeBertException(what + " is not valid Unicode: it has a lone surrogate, \\u"
                    + Integer.toHexString(text.charAt(units.position())) + ", at " + units.position());
        }
    }

    /** What C takes for a string, which cannot hold a NUL; null for null. */
    static byte[] name(String what, String text) {
        if (text != null && text.indexOf('\0') >= 0) throw new EdgeBertException(what + " holds a NUL character");
        return text == null ? null : new Texts(what, Collections.singletonList(text)).bytes;
    }

    static String decode(byte[] bytes, int begin, int end) {
        return new String(bytes, begin, end - begin, StandardCharsets.UTF_8);
    }
}
