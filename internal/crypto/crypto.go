// Package crypto seals objects for age recipients and opens them with age
// identities. A sealed object is an ordinary age v1 file (the specification is
// age-encryption.org/v1), so `age -d -i key OBJECT` opens it by hand. Sealing
// needs public keys alone; only opening needs an identity.
package crypto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrCorrupt is wrapped by errors that say a sealed object is not what was
// written: truncated, altered, or no age file at all. It is never wrapped for
// an error of the source it is read from.
var ErrCorrupt = errors.New("corrupt sealed object")

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

const (
	// magic is the first line of every age v1 file.
	magic = "age-encryption.org/v1\n"

	// hashStanza is the type of our own stanza, "-> walagent1 HASH" with an
	// empty body: HASH is the SHA-256 of the raw bytes in 64 lower-case hex
	// digits, as sha256sum prints it. age ignores stanzas it does not know.
	hashStanza = "walagent1"
	hashLine   = "-> " + hashStanza + " "
	// bodyEnd ends the stanza's opening line and its empty body.
	bodyEnd = "\n\n"
)

// HashedHead is how many of an object's first bytes HeaderHash needs. The
// stanza is the first, so the number of recipients does not matter.
const HashedHead = len(magic) + len(hashLine) + 2*32 + len(bodyEnd)

// IsSealed says whether an object that begins with head is an age file.
func IsSealed(head []byte) bool {
	return bytes.HasPrefix(head, []byte(magic))
}

// HeaderHash reads the SHA-256 of the raw bytes that Seal put into the header,
// from the first bytes of an object; it needs HashedHead of them, unless the
// object is shorter. No key is needed, and nothing is authenticated: that
// happens when the object is opened. ok is false if the object is not sealed
// or its first stanza is not ours. An error wraps ErrCorrupt: the stanza is
// ours but malformed, or the header is cut off.
func HeaderHash(head []byte) (hash [32]byte, ok bool, err error) {
	rest, sealed := bytes.CutPrefix(head, []byte(magic))
	if !sealed {
		return hash, false, nil
	}
	if len(rest) < len(hashLine) && bytes.HasPrefix([]byte(hashLine), rest) {
		return hash, false, corruptf("the header is cut off after %d bytes", len(head))
	}
	rest, ours := bytes.CutPrefix(rest, []byte(hashLine))
	if !ours {
		return hash, false, nil
	}
	digits, body := hex.EncodedLen(len(hash)), len(bodyEnd)
	if len(rest) < digits+body {
		return hash, false, corruptf("the header is cut off after %d bytes", len(head))
	}
	text := rest[:digits]
	_, err = hex.Decode(hash[:], text)
	if err != nil || !bytes.Equal(bytes.ToLower(text), text) || string(rest[digits:digits+body]) != bodyEnd {
		return [32]byte{}, false, corruptf("malformed %s stanza", hashStanza)
	}
	return hash, true, nil
}
