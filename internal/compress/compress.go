// Package compress turns raw bytes into independent zstd or lz4 frames and
// back. What it writes is what the standard tools read (`zstd -d`, `lz4 -d`),
// always with the content size and a checksum of the raw bytes in the frame;
// what it reads is found by its magic bytes, never by a file name.
//
// Formats: RFC 8878 (zstd), the LZ4 frame format 1.6.4 and block format of
// the lz4 project's doc folder, and XXH32/XXH64 of the xxHash specification.
package compress

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"agent/internal/errs"
)

// MaxFrame is the most raw bytes in one frame of ours.
const MaxFrame = 1 << 20

// MaxWindow is the biggest window, in bytes, that Reader allows a frame made
// by another tool; it bounds its memory.
const MaxWindow = 8 << 20

// ErrCorrupt is wrapped by every error that says the compressed bytes are not
// what an encoder wrote. It is never wrapped for an error of the source.
var ErrCorrupt = errors.New("corrupt compressed data")

// ErrWindow is wrapped when a frame is well-formed but would need more memory
// than MaxWindow allows.
var ErrWindow = errors.New("compressed frame needs too much memory")

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Method is how raw bytes are stored.
type Method uint8

// The methods. None is stored as zstd frames of raw blocks, so that every
// object is readable with the same two tools.
const (
	Zstd Method = iota
	LZ4
	None
)

// String is the name used in settings.
func (m Method) String() string {
	switch m {
	case Zstd:
		return "zstd"
	case LZ4:
		return "lz4"
	case None:
		return "none"
	default:
		return "method " + strconv.Itoa(int(m))
	}
}

// maxLevel is the highest level of the method's own command line tool.
func (m Method) maxLevel() int {
	switch m {
	case Zstd:
		return 22
	case LZ4:
		return 12
	default:
		return 0
	}
}

// Setting is a method and its level. The zero value is the default: zstd at
// its fastest.
type Setting struct {
	Method Method
	Level  int // 0 is the method's default, which is its level 1
}

// Parse reads "zstd", "lz4" or "none", the first two optionally with ":LEVEL"
// (zstd 1 to 22, lz4 1 to 12). Its errors are of kind errs.Config.
func Parse(value string) (Setting, error) {
	name, level, hasLevel := strings.Cut(value, ":")
	var s Setting
	switch name {
	case "zstd":
		s.Method = Zstd
	case "lz4":
		s.Method = LZ4
	case "none":
		s.Method = None
	default:
		return Setting{}, settingError("compression %q is unknown", value)
	}
	if !hasLevel {
		return s, nil
	}
	if s.Method == None {
		return Setting{}, settingError("compression %q: none takes no level", value)
	}
	n, err := strconv.Atoi(level)
	// Only the plain spelling is taken, so that a setting has one string.
	if err != nil || strconv.Itoa(n) != level || n < 1 || n > s.Method.maxLevel() {
		return Setting{}, settingError("compression %q: the level of %s must be a number from 1 to %d",
			value, name, s.Method.maxLevel())
	}
	s.Level = n
	return s, nil
}

func settingError(format string, args ...any) error {
	return errs.New(errs.Config,
		"Use zstd or zstd:1 to zstd:22, lz4 or lz4:1 to lz4:12, or none.", format, args...)
}

// String is the text from which Parse makes the same setting.
func (s Setting) String() string {
	if s.Level == 0 {
		return s.Method.String()
	}
	return s.Method.String() + ":" + strconv.Itoa(s.Level)
}

// valid refuses what Parse would never give.
func (s Setting) valid() error {
	if s.Method > None || s.Level < 0 || s.Level > s.Method.maxLevel() {
		return settingError("compression %q is not supported", s)
	}
	return nil
}

// zstdLevel maps the tool's levels onto the four of the library.
func (s Setting) zstdLevel() zstd.EncoderLevel {
	return zstd.EncoderLevelFromZstd(max(s.Level, 1))
}
