package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"
)

const ageChunk = 64 << 10

// kinds of keys, each with the identities that open and the recipients.
func keyKinds(t testing.TB) map[string][2]string {
	t.Helper()
	m := map[string][2]string{}
	id, rec := generate(t, false)
	m["classical"] = [2]string{id, rec}
	id, rec = generate(t, true)
	m["post-quantum"] = [2]string{id, rec}
	id, rec = sshKey(t, "ed25519", "")
	m["ssh-ed25519"] = [2]string{id, rec}
	id, rec = sshKey(t, "rsa", "")
	m["ssh-rsa"] = [2]string{id, rec}
	return m
}

func TestSealOpen(t *testing.T) {
	for kind, keys := range keyKinds(t) {
		to, ids := recipients(t, keys[1]), identities(t, keys[0])
		for _, n := range []int{0, 1, 100, ageChunk - 1, ageChunk, ageChunk + 1, 3*ageChunk + 5} {
			raw := noise(n)
			for _, hash := range []*[32]byte{nil, hashOf(raw)} {
				name := fmt.Sprintf("%s, %d bytes, hash %v", kind, n, hash != nil)
				sealed := seal(t, to, raw, hash)
				if !IsSealed(sealed) {
					t.Fatalf("%s: not sealed", name)
				}
				got, ok, err := HeaderHash(sealed[:min(len(sealed), HashedHead)])
				if err != nil || ok != (hash != nil) || ok && got != *hash {
					t.Errorf("%s: hash %x, %v, %v", name, got, ok, err)
				}
				if got, err := open(ids, sealed); err != nil || !bytes.Equal(got, raw) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
				r, size, err := ids.OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
				if err != nil || size != int64(n) {
					t.Fatalf("%s: size %d, %v", name, size, err)
				}
				if got, err := io.ReadAll(io.NewSectionReader(r, 0, size)); err != nil || !bytes.Equal(got, raw) {
					t.Errorf("%s: random access: %d bytes, %v", name, len(got), err)
				}
			}
		}
	}
}

// Debian's age opens what we seal, although it does not know our stanza.
func TestAgeOpensOurs(t *testing.T) {
	raw := noise(200000)
	other := recipients(t, func() string { _, r := generate(t, false); return r }())
	for kind, keys := range keyKinds(t) {
		if kind == "post-quantum" {
			continue // age 1.1.1 of Debian 12 has none; TestLibraryOpensOurs
		}
		to := recipients(t, append(other.Strings(), keys[1])...)
		key := write(t, keys[0])
		for _, hash := range []*[32]byte{nil, hashOf(raw)} {
			cmd := exec.CommandContext(t.Context(), "age", "-d", "-i", key)
			cmd.Stdin = bytes.NewReader(seal(t, to, raw, hash))
			var problems strings.Builder
			cmd.Stderr = &problems
			got, err := cmd.Output()
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s, hash %v: %d bytes, %v: %s", kind, hash != nil, len(got), err, problems.String())
			}
		}
	}
}

// And we open what age makes.
func TestWeOpenAge(t *testing.T) {
	raw := noise(100000)
	id, rec := generate(t, false)
	cmd := exec.CommandContext(t.Context(), "age", "-r", rec)
	cmd.Stdin = bytes.NewReader(raw)
	sealed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := open(identities(t, id), sealed); err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if _, ok, err := HeaderHash(sealed); ok || err != nil {
		t.Fatalf("found a hash: %v, %v", ok, err)
	}
}

func TestLibraryOpensOurs(t *testing.T) {
	raw := noise(100000)
	for _, pq := range []bool{false, true} {
		id, rec := generate(t, pq)
		ids, err := age.ParseIdentities(strings.NewReader(id))
		if err != nil {
			t.Fatal(err)
		}
		r, err := age.Decrypt(bytes.NewReader(seal(t, recipients(t, rec), raw, hashOf(raw))), ids...)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}

// With 30 post-quantum recipients the header is far longer than 4 KiB, and
// the hash still lies in the first 4 KiB.
func TestHashFirstOfManyRecipients(t *testing.T) {
	var values []string
	var last string
	for range 30 {
		id, rec := generate(t, true)
		values, last = append(values, rec), id
	}
	raw := noise(1000)
	sealed := seal(t, recipients(t, values...), raw, hashOf(raw))
	if len(sealed) < 40000 {
		t.Fatalf("the header is short, %d bytes in all", len(sealed))
	}
	if got, ok, err := HeaderHash(sealed[:4096]); err != nil || !ok || got != *hashOf(raw) {
		t.Fatalf("%x, %v, %v", got, ok, err)
	}
	if got, err := open(identities(t, last), sealed); err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestHeaderHash(t *testing.T) {
	_, rec := generate(t, false)
	raw := []byte("raw")
	sealed := seal(t, recipients(t, rec), raw, hashOf(raw))
	line := string(sealed[len(magic):HashedHead])
	for cut := range HashedHead {
		_, ok, err := HeaderHash(sealed[:cut])
		if ok || cut >= len(magic) && !errors.Is(err, ErrCorrupt) || cut < len(magic) && err != nil {
			t.Errorf("cut after %d: %v, %v", cut, ok, err)
		}
	}
	for name, stanza := range map[string]string{
		"upper case":  strings.Replace(line, line[len(hashLine):len(hashLine)+64], strings.Repeat("AB", 32), 1),
		"no hex":      strings.Replace(line, line[len(hashLine):len(hashLine)+64], strings.Repeat("zz", 32), 1),
		"short":       hashLine + strings.Repeat("ab", 31) + "\n\n" + strings.Repeat(" ", 80),
		"long":        hashLine + strings.Repeat("ab", 33) + "\n\n",
		"more words":  hashLine + strings.Repeat("ab", 32) + " x\n\n",
		"with a body": hashLine + strings.Repeat("ab", 32) + "\nAAAA\n",
	} {
		if _, ok, err := HeaderHash([]byte(magic + stanza)); ok || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	for name, head := range map[string]string{
		"nothing":        "",
		"zstd":           "\x28\xB5\x2F\xFD and more",
		"other stanza":   magic + "-> X25519 abc\n\n",
		"similar stanza": magic + "-> walagent12 " + strings.Repeat("ab", 32) + "\n\n",
		"armored":        "-----BEGIN AGE ENCRYPTED FILE-----\n",
	} {
		if _, ok, err := HeaderHash([]byte(head)); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

// The header's MAC covers the hash: changing it is found when opening.
func TestChangedHashIsFoundWhenOpening(t *testing.T) {
	id, rec := generate(t, false)
	raw := noise(10)
	sealed := seal(t, recipients(t, rec), raw, hashOf(raw))
	copy(sealed[len(magic)+len(hashLine):], strings.Repeat("0", 64))
	if got, ok, err := HeaderHash(sealed); err != nil || !ok || got != [32]byte{} {
		t.Fatalf("%x, %v, %v", got, ok, err)
	}
	_, err := open(identities(t, id), sealed)
	wantCorrupt(t, "changed hash", err)
}

func TestSealWithoutRecipients(t *testing.T) {
	var b bytes.Buffer
	if w, err := (Recipients{}).Seal(&b, nil); err == nil || w != nil || b.Len() != 0 {
		t.Fatalf("sealed for nobody: %v, %v, %d bytes", w, err, b.Len())
	}
}

// failing fails from its nth write on.
type failing struct{ left int }

var errDiskFull = errors.New("disk full")

func (f *failing) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errDiskFull
	}
	return len(p), nil
}

func TestSealPassesWriteErrors(t *testing.T) {
	_, rec := generate(t, false)
	to := recipients(t, rec)
	for left := range 5 { // header, two chunks, the last chunk: 4 writes
		w, err := to.Seal(&failing{left}, nil)
		if err == nil {
			_, err = w.Write(make([]byte, 2*ageChunk+1))
		}
		if err == nil {
			err = w.Close()
		}
		if (left < 4) != errors.Is(err, errDiskFull) {
			t.Errorf("after %d writes: %v", left, err)
		}
	}
}

func TestSealOpenProperty(t *testing.T) {
	id, rec := generate(t, false)
	to, ids := recipients(t, rec), identities(t, id)
	rapid.Check(t, func(r *rapid.T) {
		raw := noise(rapid.IntRange(0, 3*ageChunk).Draw(r, "size"))
		sealed := seal(t, to, raw, hashOf(raw))
		at, size, err := ids.OpenAt(bytes.NewReader(sealed), int64(len(sealed)))
		if err != nil || size != int64(len(raw)) {
			r.Fatalf("size %d, %v", size, err)
		}
		off := rapid.IntRange(0, len(raw)+10).Draw(r, "offset")
		p := make([]byte, rapid.IntRange(0, 2*ageChunk).Draw(r, "length"))
		want, wantErr := bytes.NewReader(raw).ReadAt(bytes.Clone(p), int64(off))
		got, gotErr := at.ReadAt(p, int64(off))
		if got != want || (len(p) > 0 && !errors.Is(gotErr, wantErr)) {
			r.Fatalf("read %d, %v; want %d, %v", got, gotErr, want, wantErr)
		}
		if !bytes.Equal(p[:got], raw[min(off, len(raw)):min(off, len(raw))+got]) {
			r.Fatal("other bytes")
		}
	})
}

func FuzzHeaderHash(f *testing.F) {
	_, rec := generate(f, false)
	f.Add(seal(f, recipients(f, rec), nil, hashOf(nil)))
	f.Add([]byte(magic + hashLine))
	f.Add([]byte(magic + "-> X25519 a\n\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		hash, ok, err := HeaderHash(head)
		switch {
		case ok && (err != nil || !IsSealed(head) || !bytes.Contains(head[:HashedHead], fmt.Appendf(nil, "%x", hash))):
			t.Fatalf("%x, %v", hash, err)
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Fatal(err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, pq := range []bool{false, true} {
		_, rec := generate(b, pq)
		to := recipients(b, rec)
		for _, n := range []int{1 << 10, 16 << 20} {
			b.Run(fmt.Sprintf("post-quantum=%v/%d", pq, n), func(b *testing.B) {
				raw, hash := noise(n), hashOf(nil)
				var dst bytes.Buffer
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					dst.Reset()
					w, err := to.Seal(&dst, hash)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := w.Write(raw); err != nil {
						b.Fatal(err)
					}
					if err := w.Close(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
