package compress

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Encoder makes frames. It keeps its tables and buffers from frame to frame,
// so one per worker is enough. It is not safe for concurrent use.
type Encoder struct {
	setting Setting
	zstd    *zstd.Encoder // nil unless the method is Zstd
	lz4     lz4Encoder
}

// NewEncoder makes an encoder; it fails for a setting that Parse would refuse.
func NewEncoder(s Setting) (*Encoder, error) {
	if err := s.valid(); err != nil {
		return nil, err
	}
	e := &Encoder{setting: s}
	switch s.Method {
	case Zstd:
		enc, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(s.zstdLevel()),
			zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(true),
			zstd.WithWindowSize(MaxFrame),
			// Without it, frames below 256 bytes carry no content size.
			zstd.WithSingleSegment(true),
		)
		if err != nil {
			return nil, fmt.Errorf("make zstd encoder: %w", err)
		}
		e.zstd = enc
	case LZ4:
		e.lz4 = newLZ4Encoder(s.Level)
	}
	return e, nil
}

// Setting returns what the encoder was made with.
func (e *Encoder) Setting() Setting { return e.setting }

// AppendFrame appends to dst one independent frame holding raw, which is at
// most MaxFrame bytes and may be empty. The frame carries its content size and
// a checksum. On an error dst is returned as it was. raw and the free capacity
// of dst must not overlap.
func (e *Encoder) AppendFrame(dst, raw []byte) ([]byte, error) {
	if len(raw) > MaxFrame {
		return dst, fmt.Errorf("compress frame: %d raw bytes are more than %d", len(raw), MaxFrame)
	}
	switch {
	case e.setting.Method == LZ4:
		return e.lz4.appendFrame(dst, raw)
	case e.setting.Method == None, len(raw) == 0:
		// The library leaves the checksum out of an empty frame.
		return appendRawZstd(dst, raw), nil
	default:
		return e.zstd.EncodeAll(raw, dst), nil
	}
}
