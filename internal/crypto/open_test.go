package crypto

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"agent/internal/errs"
)

func TestOpenWithoutIdentity(t *testing.T) {
	_, rec := generate(t, false)
	sealed := seal(t, recipients(t, rec), []byte("raw"), nil)
	for name, ids := range map[string]*Identities{
		"nil":   nil,
		"none":  NewIdentities(t.Context(), Sources{}),
		"blank": NewIdentities(t.Context(), Sources{Text: " \n"}),
	} {
		if ids.Given() {
			t.Errorf("%s: there is an identity", name)
		}
		_, err := open(ids, sealed)
		wantError(t, err, errs.Identity, "none is given")
		if hint := errs.HintOf(err); !strings.Contains(hint, "AGENT_IDENTITY_FILE") || !strings.Contains(hint, "AGENT_IDENTITY_COMMAND") {
			t.Errorf("%s: hint %q", name, hint)
		}
		_, _, err = ids.OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
		wantError(t, err, errs.Identity, "none is given")
	}
}

func TestOpenWithOtherIdentity(t *testing.T) {
	_, mine := generate(t, false)
	_, ssh := sshKey(t, "ed25519", "")
	other, _ := generate(t, false)
	pq, _ := generate(t, true)
	sealed := seal(t, recipients(t, mine, ssh), []byte("raw"), hashOf(nil))
	_, err := open(identities(t, other), sealed)
	wantError(t, err, errs.Identity, `does not fit: the object is sealed for 2 other recipients ("X25519, ssh-ed25519")`)
	_, err = open(identities(t, other, pq), sealed)
	wantError(t, err, errs.Identity, "none of the 2 identities given fits")
	_, _, err = identities(t, other).OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
	wantError(t, err, errs.Identity, "does not fit")
}

func TestOpenFindsCutsAndChanges(t *testing.T) {
	id, rec := generate(t, false)
	ids := identities(t, id)
	raw := noise(2*ageChunk + 100)
	sealed := seal(t, recipients(t, rec), raw, hashOf(raw))
	header := bytes.Index(sealed, []byte("\n---")) + 5 + 43 + 1
	places := []int{header + 16, header + 16 + ageChunk + 16, len(sealed) - 1}
	for at := range header + 20 {
		places = append(places, at)
	}
	for at := header; at < len(sealed); at += 9973 {
		places = append(places, at)
	}
	readAt := func(b []byte) error {
		r, size, err := ids.OpenAt(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, size))
		}
		return err
	}
	for _, at := range places {
		_, err := open(ids, sealed[:at])
		wantCorrupt(t, "cut", err)
		wantCorrupt(t, "cut, random access", readAt(sealed[:at]))
		sealed[at] ^= 4
		for _, err := range []error{func() error { _, err := open(ids, sealed); return err }(), readAt(sealed)} {
			// Damage of the stanza for our key looks like another's object.
			if !errors.Is(err, ErrCorrupt) && (at >= header || errs.KindOf(err) != errs.Identity) {
				t.Errorf("changed at %d of %d: %v", at, len(sealed), err)
			}
			if errors.Is(err, io.EOF) || err != nil && len(err.Error()) > 400 {
				t.Errorf("changed at %d: %v", at, err)
			}
		}
		sealed[at] ^= 4
	}
	_, err := open(ids, append(bytes.Clone(sealed), 0))
	wantCorrupt(t, "one byte more", err)
	wantCorrupt(t, "one byte more, random access", readAt(append(bytes.Clone(sealed), 0)))
	_, err = open(ids, []byte("\x28\xB5\x2F\xFD not sealed"))
	wantCorrupt(t, "not sealed", err)
}

// What the source says is not damage of the object.
func TestOpenPassesSourceErrors(t *testing.T) {
	id, rec := generate(t, false)
	ids := identities(t, id)
	sealed := seal(t, recipients(t, rec), noise(2*ageChunk), nil)
	for _, broken := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF} {
		for at := 0; at < len(sealed); at += 577 {
			r, err := ids.Open(io.MultiReader(bytes.NewReader(sealed[:at]), iotest.ErrReader(broken)))
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v at %d: %v", broken, at, err)
			}
		}
		for calls := range 4 {
			r, size, err := ids.OpenAt(&brokenAt{r: bytes.NewReader(sealed), left: calls, err: broken}, int64(len(sealed)))
			if err == nil {
				_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, size))
			}
			if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v after %d calls: %v", broken, calls, err)
			}
		}
	}
}

// brokenAt fails from its nth call on.
type brokenAt struct {
	r    io.ReaderAt
	left int
	err  error
}

func (b *brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if b.left--; b.left < 0 {
		return 0, b.err
	}
	return b.r.ReadAt(p, off)
}

func TestOpenReaderContract(t *testing.T) {
	id, rec := generate(t, false)
	raw := noise(ageChunk + 1000)
	sealed := seal(t, recipients(t, rec), raw, nil)
	r, err := identities(t, id).Open(iotest.HalfReader(bytes.NewReader(sealed)))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, raw); err != nil {
		t.Error(err)
	}
	at, size, err := identities(t, id).OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(at, 0, size), raw); err != nil {
		t.Error(err)
	}
	if _, err := at.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("negative offset was accepted")
	}
}

func FuzzOpen(f *testing.F) {
	id, rec := generate(f, false)
	f.Add(seal(f, recipients(f, rec), []byte("raw"), hashOf(nil)))
	f.Add([]byte(magic))
	ids := identities(f, id)
	f.Fuzz(func(t *testing.T, sealed []byte) {
		_, err := open(ids, sealed)
		if err != nil && !errors.Is(err, ErrCorrupt) && errs.KindOf(err) != errs.Identity {
			t.Fatal(err)
		}
		r, size, errAt := ids.OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
		if errAt == nil {
			_, errAt = io.Copy(io.Discard, io.NewSectionReader(r, 0, size))
		}
		if (err == nil) != (errAt == nil) {
			t.Fatalf("as a stream: %v; at random: %v", err, errAt)
		}
	})
}

// Of a range the chunks that SealedRange names are enough, and they are no more than needed.
func TestSealedRange(t *testing.T) {
	id, rec := generate(t, false)
	ids := identities(t, id)
	for _, size := range []int{0, 1, ageChunk - 1, ageChunk, ageChunk + 1, 3*ageChunk + 100} {
		raw := noise(size)
		sealed := seal(t, recipients(t, rec), raw, nil)
		for _, r := range [][2]int{{0, 1}, {0, ageChunk}, {ageChunk - 1, 2}, {ageChunk, 5}, {2*ageChunk + 7, ageChunk}, {3 * ageChunk, 100}} {
			off, n := r[0], r[1]
			if off+n > size {
				continue
			}
			at, length := SealedRange(int64(len(sealed)), int64(size), int64(off), int64(n))
			opened, plain, err := ids.OpenAt(onlyRange{sealed, at, at + length, len(sealed)}, int64(len(sealed)))
			if err != nil || plain != int64(size) {
				t.Fatalf("%d bytes: size %d, %v", size, plain, err)
			}
			got := make([]byte, n)
			if m, err := opened.ReadAt(got, int64(off)); m != n || !bytes.Equal(got, raw[off:off+n]) {
				t.Errorf("%d bytes at %d of %d: %d, %v", n, off, size, m, err)
			}
			if chunks := (off+n-1)/ageChunk - off/ageChunk + 1; length > int64(chunks*(ageChunk+16)) {
				t.Errorf("%d bytes at %d of %d: a range of %d", n, off, size, length)
			}
		}
	}
}

// onlyRange has, besides the header and the last chunk, only a range of a sealed
// object.
type onlyRange struct {
	sealed   []byte
	from, to int64
	size     int
}

func (o onlyRange) ReadAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	head, tail := end <= 1000 || off == 0, off >= int64(o.size-ageChunk-16)
	if !head && !tail && (off < o.from || end > o.to) {
		return 0, errors.New("this was not to be read")
	}
	return bytes.NewReader(o.sealed).ReadAt(p, off)
}

// TestPlainSize compares the size that follows from the header with that which
// age finds.
func TestPlainSize(t *testing.T) {
	id, one := generate(t, false)
	_, other := generate(t, false)
	_, ssh := sshKey(t, "rsa", "")
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize} {
		for _, to := range []Recipients{recipients(t, one), recipients(t, one, other, ssh)} {
			sealed := seal(t, to, make([]byte, size), nil)
			header, err := HeaderSize(sealed[:min(len(sealed), 4096)])
			if err != nil {
				t.Fatal(err)
			}
			_, plain, err := identities(t, id).OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
			if err != nil || plain != int64(size) {
				t.Fatalf("%d bytes: %d, %v", size, plain, err)
			}
			if got := PlainSize(int64(len(sealed)), header); got != plain {
				t.Errorf("%d bytes: %d", size, got)
			}
		}
	}
	for _, bad := range []string{"", "age-encryption.org/v1\n-> X25519 x\n", "age-encryption.org/v1\n--- x"} {
		if _, err := HeaderSize([]byte(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
