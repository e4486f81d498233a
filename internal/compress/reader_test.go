package compress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// object is frames in a row, as repositories hold them.
func object(t testing.TB, s Setting, raw []byte, frameSize int) []byte {
	t.Helper()
	e := newEncoder(t, s)
	b := AppendSkippable(nil, []byte("a hash"))
	for chunk := range slices.Chunk(raw, frameSize) {
		var err error
		if b, err = e.AppendFrame(b, chunk); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestReader(t *testing.T) {
	raw := pageLike(MaxFrame + 12345)
	for _, s := range settings() {
		stored := object(t, s, raw, MaxFrame)
		for name, src := range map[string]io.Reader{
			"whole":   bytes.NewReader(stored),
			"bits":    iotest.HalfReader(bytes.NewReader(stored)),
			"dataerr": iotest.DataErrReader(bytes.NewReader(stored)),
		} {
			r := NewReader(src)
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, raw) {
				t.Fatalf("%v, %s: %d bytes, %v", s, name, len(got), err)
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%v, %s: after the end: %d, %v", s, name, n, err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%v, %s: after Close: %v", s, name, err)
			}
		}
	}
}

func TestReaderContract(t *testing.T) {
	raw := pageLike(100000)
	for _, s := range settings() {
		if err := iotest.TestReader(NewReader(bytes.NewReader(object(t, s, raw, 9000))), raw); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// What our encoder wrote is read by the standard tools, and by us in turn.
func TestToolsReadOurs(t *testing.T) {
	raw := pageLike(MaxFrame + 777)
	for _, s := range settings() {
		tool := toolOf(s.Method)
		if got := runTool(t, object(t, s, raw, MaxFrame), tool, "-d", "-c"); !bytes.Equal(got, raw) {
			t.Errorf("%s reads an object of %v differently", tool, s)
		}
		for name, raw := range samples() {
			frame := appendFrame(t, s, nil, raw)
			if got := runTool(t, frame, tool, "-d", "-c"); !bytes.Equal(got, raw) {
				t.Errorf("%s reads %q of %v differently", tool, name, s)
			}
		}
	}
}

// What the tools wrote with other settings is read by the streaming way.
func TestWeReadTools(t *testing.T) {
	raw := append(pageLike(2*MaxFrame), noise(3*MaxFrame+5)...)
	for _, args := range []string{
		"zstd -1", "zstd -3 --no-check", "zstd -15", "zstd -5 --stream-size=5242885", "zstd -1 --long=23",
		"lz4 -1", "lz4 -9 -BD", "lz4 -1 -B4", "lz4 -1 -B5 -BX", "lz4 -1 --no-frame-crc", "lz4 -1 -B7 -BD",
	} {
		f := strings.Fields(args)
		stored := runTool(t, raw, f[0], append(f[1:], "-c")...)
		got, err := io.ReadAll(NewReader(bytes.NewReader(stored)))
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%s: %d bytes, %v", args, len(got), err)
		}
		// Two such frames in a row, between skippable ones.
		twice := AppendSkippable(bytes.Clone(stored), []byte("x"))
		twice = AppendSkippable(append(twice, stored...), nil)
		got, err = io.ReadAll(NewReader(bytes.NewReader(twice)))
		if err != nil || len(got) != 2*len(raw) {
			t.Fatalf("%s twice: %d bytes, %v", args, len(got), err)
		}
		// Damage and cuts on the streaming way.
		for at := 5; at < len(stored); at += len(stored) / 12 {
			got, err := io.ReadAll(NewReader(bytes.NewReader(stored[:at])))
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s cut at %d: %d bytes, %v", args, at, len(got), err)
			}
		}
		if strings.Contains(args, "--no-") {
			continue
		}
		for at := 20; at < len(stored); at += len(stored) / 12 {
			stored[at] ^= 0x10
			got, err := io.ReadAll(NewReader(bytes.NewReader(stored)))
			if err == nil && !bytes.Equal(got, raw) || err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s damaged at %d: %d bytes, %v", args, at, len(got), err)
			}
			stored[at] ^= 0x10
		}
	}
}

// Small frames of the tools in other shapes than ours, through Decoder.
func TestDecoderReadsTools(t *testing.T) {
	raw := pageLike(300000)
	for _, args := range []string{
		"zstd -3 --stream-size=300000", "zstd -19 --stream-size=300000",
	} {
		f := strings.Fields(args)
		frame := runTool(t, raw, f[0], append(f[1:], "-c")...)
		var d Decoder
		got, err := d.AppendRaw(nil, frame)
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes, %v", args, len(got), err)
		}
	}
	path := t.TempDir() + "/raw"
	writeFile(t, path, raw)
	for _, args := range []string{"-1 -B4", "-1 -B4 -BD", "-9 -B5 -BX", "-1 -B7", "-1 -B6 -BX"} {
		frame := runTool(t, nil, "lz4", append(strings.Fields(args), "--content-size", "-c", path)...)
		var d Decoder
		for range 2 { // again with the library reader reused
			got, err := d.AppendRaw(nil, frame)
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("lz4 %s: %d bytes, %v", args, len(got), err)
			}
			frame[len(frame)/2] ^= 1
			if got, err := d.AppendRaw(nil, frame); !errors.Is(err, ErrCorrupt) {
				t.Errorf("lz4 %s damaged: %d bytes, %v", args, len(got), err)
			}
			frame[len(frame)/2] ^= 1
		}
	}
}

func TestReaderRefusesWindow(t *testing.T) {
	stored := runTool(t, noise(9<<20), "zstd", "-1", "--long=27", "-c")
	n, err := io.Copy(io.Discard, NewReader(bytes.NewReader(stored)))
	if !errors.Is(err, ErrWindow) || !strings.Contains(err.Error(), "8388608") || n != 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// Every cut is noticed, but for those between two frames.
func TestReaderFindsEveryCut(t *testing.T) {
	raw := pageLike(3000)
	for _, s := range settings() {
		stored := AppendSkippable(nil, []byte("hash"))
		whole := map[int]int{} // length of a whole object -> its raw length
		e := newEncoder(t, s)
		for i := range 3 {
			var err error
			if stored, err = e.AppendFrame(stored, raw[i*1000:(i+1)*1000]); err != nil {
				t.Fatal(err)
			}
			whole[len(stored)] = (i + 1) * 1000
		}
		for cut := range len(stored) + 1 {
			got, err := io.ReadAll(NewReader(bytes.NewReader(stored[:cut])))
			if want, ok := whole[cut]; ok {
				if err != nil || len(got) != want {
					t.Fatalf("%v, cut at %d: %d bytes, %v", s, cut, len(got), err)
				}
				continue
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v, cut at %d: %d bytes, %v", s, cut, len(got), err)
			}
		}
	}
}

func TestReaderPassesSourceErrors(t *testing.T) {
	broken := errors.New("connection reset")
	for _, s := range settings() {
		for _, args := range []string{"", "foreign"} {
			stored := object(t, s, pageLike(100000), 30000)
			if args != "" {
				stored = runTool(t, pageLike(3<<20), toolOf(s.Method), "-c")
			}
			for at := 0; at < len(stored); at += max(1, len(stored)/25) {
				src := io.MultiReader(bytes.NewReader(stored[:at]), iotest.ErrReader(broken))
				_, err := io.Copy(io.Discard, NewReader(src))
				if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
					t.Fatalf("%v%s, broken at %d: %v", s, args, at, err)
				}
			}
		}
	}
}

func TestReaderRefusesMixture(t *testing.T) {
	z := appendFrame(t, Setting{}, nil, []byte("one"))
	both := appendFrame(t, Setting{Method: LZ4}, z, []byte("two"))
	got, err := io.ReadAll(NewReader(bytes.NewReader(both)))
	if !errors.Is(err, ErrCorrupt) || string(got) != "one" {
		t.Fatalf("%q, %v", got, err)
	}
	// But none is zstd.
	both = appendFrame(t, Setting{Method: None}, z, []byte("two"))
	if got, err := io.ReadAll(NewReader(bytes.NewReader(both))); err != nil || string(got) != "onetwo" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestReaderRefusesEndlessFrame(t *testing.T) {
	// A frame that claims one raw byte and goes on with empty blocks.
	head := []byte{0x28, 0xB5, 0x2F, 0xFD, zstdFlagSingle | zstdFlagChecksum, 1}
	src := io.MultiReader(bytes.NewReader(head), zeros{})
	n, err := io.Copy(io.Discard, NewReader(src))
	if !errors.Is(err, ErrCorrupt) || n != 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func ExampleNewReader() {
	e, err := NewEncoder(Setting{Method: LZ4})
	if err != nil {
		fmt.Println(err)
		return
	}
	frame, err := e.AppendFrame(nil, []byte("hello"))
	if err != nil {
		fmt.Println(err)
		return
	}
	raw, err := io.ReadAll(NewReader(bytes.NewReader(frame)))
	fmt.Println(string(raw), err)
	// Output: hello <nil>
}
