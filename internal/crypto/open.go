package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"agent/internal/errs"
)

// Open reads the header of the sealed object in src and returns its plaintext
// as a stream. Every chunk is authenticated before it is given out; a clean
// io.EOF comes only at the authenticated end of the object. Errors, also of
// the returned reader: kind errs.Identity if there is no identity or none
// fits; wrapping ErrCorrupt if the object is truncated or altered; otherwise
// the error of src, wrapped.
func (i *Identities) Open(src io.Reader) (io.Reader, error) {
	ids, err := i.get()
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(markedReader{src}, ids...)
	if err != nil {
		return nil, openError(err, len(ids))
	}
	return &openReader{r: r}, nil
}

// OpenAt is Open for random access; size is that of the sealed object, in
// bytes, and the returned size that of the plaintext. The reader is safe for
// concurrent use if src is. It reads src in pieces of 64 KiB and authenticates
// each that it gives out; the last one is read at once, so that the size is
// authenticated too.
func (i *Identities) OpenAt(src io.ReaderAt, size int64) (io.ReaderAt, int64, error) {
	ids, err := i.get()
	if err != nil {
		return nil, 0, err
	}
	r, plain, err := age.DecryptReaderAt(markedReaderAt{src}, size, ids...)
	if err != nil {
		return nil, 0, openError(err, len(ids))
	}
	return openReaderAt{r: r, size: plain}, plain, nil
}

// The chunks of an age payload (age-encryption.org/v1, "Payload").
const (
	chunkSize = 64 << 10
	chunkTag  = 16
)

// SealedRange says which bytes of a sealed object hold n bytes of its plaintext
// from off on: whole chunks, which can be opened alone. The sizes are those of
// the object and of its plaintext, as OpenAt gives them.
func SealedRange(sealed, plain, off, n int64) (at, length int64) {
	chunks := max((plain+chunkSize-1)/chunkSize, 1)
	payload := sealed - plain - chunks*chunkTag // what is before it: header and nonce
	first, last := off/chunkSize, (off+n-1)/chunkSize
	at = payload + first*(chunkSize+chunkTag)
	return at, min(payload+(last+1)*(chunkSize+chunkTag), sealed) - at
}

type openReader struct{ r io.Reader }

// Read gives authenticated plaintext.
func (o *openReader) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = openError(err, 0)
	}
	return n, err
}

type openReaderAt struct {
	r    io.ReaderAt
	size int64
}

// ReadAt gives authenticated plaintext; io.EOF at its end and beyond.
func (o openReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read sealed object: negative offset %d", off)
	}
	if off >= o.size {
		return 0, io.EOF
	}
	n, err := o.r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		if n == len(p) {
			err = nil
		}
		return n, err
	}
	if err != nil {
		err = openError(err, 0)
	}
	return n, err
}

// openError sorts age's errors. Its texts can quote parts of the object, so
// that they are cut short; io.EOF does not stay in the chain, since a caller
// would take it for the end of the object.
func openError(err error, identities int) error {
	var source *sourceError
	if errors.As(err, &source) {
		return fmt.Errorf("read sealed object: %w", source.err)
	}
	var noMatch *age.NoIdentityMatchError
	if errors.As(err, &noMatch) {
		return noMatchError(noMatch, identities)
	}
	text := err.Error()
	const most = 200
	if len(text) > most {
		text = text[:most] + "…"
	}
	return corruptf("truncated or altered: %s", text)
}

func noMatchError(err *age.NoIdentityMatchError, identities int) error {
	var kinds []string
	recipients := 0
	for _, kind := range err.StanzaTypes {
		if kind == hashStanza {
			continue
		}
		recipients++
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	const most = 8
	if len(kinds) > most {
		kinds = append(kinds[:most], "…")
	}
	what := "the identity given does not fit"
	if identities != 1 {
		what = fmt.Sprintf("none of the %d identities given fits", identities)
	}
	return errs.New(errs.Identity,
		"Give the identity of a recipient that was set when the object was written. If the identity is right, the object's header is damaged.",
		"%s: the object is sealed for %d other recipients (%q)", what, recipients, strings.Join(kinds, ", "))
}

// sourceError marks what the source said, to tell it from damage.
type sourceError struct{ err error }

// Error is the text of the source's error.
func (e *sourceError) Error() string { return e.err.Error() }

// Unwrap returns the source's error.
func (e *sourceError) Unwrap() error { return e.err }

func mark(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &sourceError{err}
}

type markedReader struct{ r io.Reader }

// Read marks errors of the source.
func (m markedReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	return n, mark(err)
}

type markedReaderAt struct{ r io.ReaderAt }

// ReadAt marks errors of the source.
func (m markedReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.r.ReadAt(p, off)
	return n, mark(err)
}

// HeaderSize is how many bytes the header of a sealed object has, from its first
// bytes. It ends with the line of its MAC, which no other line looks like: the
// bodies of the stanzas are base64.
func HeaderSize(head []byte) (int64, error) {
	mac := bytes.Index(head, []byte("\n--- "))
	if mac < 0 {
		return 0, corruptf("the header does not end in the first %d bytes", len(head))
	}
	end := bytes.IndexByte(head[mac+1:], '\n')
	if end < 0 {
		return 0, corruptf("the header does not end in the first %d bytes", len(head))
	}
	return int64(mac + 1 + end + 1), nil
}

// nonceSize is that of the payload's nonce.
const nonceSize = 16

// PlainSize is how many bytes a sealed object of that size holds behind a
// header of that size.
func PlainSize(sealed, header int64) int64 {
	payload := sealed - header - nonceSize
	chunks := max((payload+chunkSize+chunkTag-1)/(chunkSize+chunkTag), 1)
	return max(payload-chunks*chunkTag, 0)
}
