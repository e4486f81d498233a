package repo

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/storage"
)

func TestPutOwned(t *testing.T) {
	body := noise(1, 20_000)
	lost := errors.New("the answer was lost")
	tests := map[string]struct {
		there []byte // what is there before
		err   error
	}{
		"new":               {nil, nil},
		"our own":           {body, nil},
		"another size":      {body[:19_999], storage.ErrExists},
		"another beginning": {append([]byte{body[0] ^ 1}, body[1:]...), storage.ErrExists},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			if test.there != nil {
				m.set("a/b", test.there)
			}
			info, err := testRepo(m, Keys{}, compress.Setting{}).putOwned(t.Context(), "a/b", "", storage.Bytes(body))
			if !errors.Is(err, test.err) {
				t.Fatalf("got %v, want %v", err, test.err)
			}
			if err == nil && (info.Size != int64(len(body)) || info.SHA256 != sha(body)) {
				t.Fatalf("described as %+v", info)
			}
			if test.there != nil && !bytes.Equal(m.objects["a/b"].body, test.there) {
				t.Fatal("the object was replaced")
			}
		})
	}
	t.Run("cannot be looked at", func(t *testing.T) {
		m := newMemory()
		m.set("a/b", body)
		m.hook = func(op, _ string) error {
			if op == "get" {
				return lost
			}
			return nil
		}
		if _, err := testRepo(m, Keys{}, compress.Setting{}).putOwned(t.Context(), "a/b", "", storage.Bytes(body)); !errors.Is(err, lost) {
			t.Fatalf("got %v", err)
		}
	})
}

// EachChunk gives all bytes, and only io.EOF is an end.
func TestEachChunk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := noise(7, rapid.IntRange(0, 3*compress.MaxFrame).Draw(t, "size"))
		end := rapid.SampledFrom([]error{io.EOF, io.ErrUnexpectedEOF, errors.New("cut")}).Draw(t, "end")
		src := io.MultiReader(bytes.NewReader(want), iotest.ErrReader(end))
		if rapid.Bool().Draw(t, "halves") {
			src = iotest.HalfReader(src)
		}
		if rapid.Bool().Draw(t, "error with data") {
			src = iotest.DataErrReader(src)
		}
		var got []byte
		chunks := 0
		err := EachChunk(src, func(raw []byte) error {
			if len(raw) == 0 || len(raw) > compress.MaxFrame || len(got)%compress.MaxFrame != 0 {
				t.Fatalf("a chunk of %d bytes behind %d", len(raw), len(got))
			}
			got = append(got, raw...)
			chunks++
			return nil
		})
		if !errors.Is(end, io.EOF) {
			if !errors.Is(err, end) || errors.Is(err, io.EOF) {
				t.Fatalf("ended with %v: %v", end, err)
			}
			return
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(want), err)
		}
	})
	stop := errors.New("stop")
	if err := EachChunk(strings.NewReader("a"), func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
}

// tool runs a program on stdin and returns its output.
func tool(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, problem.Bytes())
	}
	return out.Bytes()
}

// Every kind of object opens with `age -d`, then `zstd -d` or `lz4 -d`.
func TestObjectsOpenByHand(t *testing.T) {
	keys, identity := testKeys(t)
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte(identity+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	history := []byte("1\t0/A019D0\tat restore point \"rp1\"\n")
	raw := noise(3, 3<<20)
	for _, codec := range []string{"zstd", "zstd:9", "lz4", "lz4:9", "none"} {
		for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
			t.Run(codec+"/"+name, func(t *testing.T) {
				m := newMemory()
				r := testRepo(m, k, setting(t, codec))
				open := func(key string) []byte {
					t.Helper()
					body := m.objects[key].body
					if sealed := bytes.HasPrefix(body, []byte("age-encryption.org/v1\n")); sealed != (name == "sealed" && !strings.Contains(key, "history") && !strings.HasSuffix(key, "packs")) {
						t.Fatalf("%s is sealed: %v", key, sealed)
					} else if sealed {
						body = tool(t, body, "age", "-d", "-i", file)
					}
					if strings.HasPrefix(codec, "lz4") {
						return tool(t, body, "lz4", "-d", "-c")
					}
					return tool(t, body, "zstd", "-d", "-c")
				}
				for f, content := range map[string][]byte{"00000002.history": history, "000000010000000000000009": raw} {
					wal := walFile(t, f)
					if _, err := r.PutWAL(t.Context(), testCluster, wal, bytes.NewReader(content), int64(len(content)), noCheck{}, nil); err != nil {
						t.Fatal(err)
					}
					if got := open(testCluster.WALKey(wal, [32]byte{})); !bytes.Equal(got, content) {
						t.Fatalf("%s gives %d other bytes", f, len(got))
					}
				}
				// A pack's content and a manifest.
				enc, err := compress.NewEncoder(setting(t, codec))
				if err != nil {
					t.Fatal(err)
				}
				set := newPacks(t.Context(), r, testName, 1)
				w := set.Writer(PackData)
				for chunk := range slices.Chunk(raw, compress.MaxFrame) {
					frame, err := enc.AppendFrame(nil, chunk)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := w.Append(t.Context(), frame, int64(len(chunk))); err != nil {
						t.Fatal(err)
					}
				}
				if err := errorsFirst(w.Close(), set.group.Wait()); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(open(testCluster.packKey(testName, 0)), raw) {
					t.Fatal("the pack gives other bytes")
				}
				m.Delete(t.Context(), testCluster.packKey(testName, 0))
				id, frames := lent()
				store(t, r, []item{{Entry{Kind: EntryFile, Path: "a", Mode: 0o600, ModTime: testTime, Size: blocks}, []named{{Length: blocks, Pack: id}}}}, map[PackID][]Frame{id: frames})
				if got := open(testCluster.manifestKey(testName)); len(got) == 0 || got[0] != recordHeader {
					t.Fatalf("the manifest begins with %q", got)
				}
				if got := open(testCluster.packsKey(testName)); !bytes.Contains(got, []byte(`"kind":"meta"`)) {
					t.Fatalf("the list of packs is %q", got)
				}
			})
		}
	}
}

// noCheck takes any bytes for what their name says.
type noCheck struct{}

func (noCheck) Write(p []byte) (int, error) { return len(p), nil }
func (noCheck) Close() error                { return nil }

func walFile(t testing.TB, name string) postgres.WALFile {
	t.Helper()
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
