package repo

import (
	"fmt"
	"io"

	"agent/internal/compress"
)

// rootWriter cuts the root into frames.
type rootWriter struct {
	enc   *compress.Encoder
	seal  io.WriteCloser
	spool spool
	buf   []byte
	copy  ManifestCopy
}

func (w *rootWriter) write(b []byte) error {
	w.buf = append(w.buf, b...)
	for len(w.buf) >= compress.MaxFrame {
		if err := w.frame(w.buf[:compress.MaxFrame]); err != nil {
			return err
		}
		w.buf = append(w.buf[:0], w.buf[compress.MaxFrame:]...)
	}
	return nil
}

func (w *rootWriter) frame(raw []byte) error {
	frame, err := w.enc.AppendFrame(nil, raw)
	if err != nil {
		return fmt.Errorf("compress manifest: %w", err)
	}
	if _, err := w.seal.Write(frame); err != nil {
		return fmt.Errorf("seal manifest: %w", err)
	}
	if w.copy != nil {
		return w.copy.Root(frame)
	}
	return nil
}

// cut ends the frame, so that all that was written is in the copy.
func (w *rootWriter) cut() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.frame(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *rootWriter) close() error {
	if err := w.frame(w.buf); err != nil {
		return err
	}
	if err := w.seal.Close(); err != nil {
		return fmt.Errorf("seal manifest: %w", err)
	}
	return nil
}
