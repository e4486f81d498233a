package crypto

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"

	"filippo.io/age"
)

// postQuantumLabel is what age's post-quantum recipients return as their only
// label; recipients with other labels are not mixed with them (age v1.3,
// HybridRecipient.WrapWithLabels).
const postQuantumLabel = "postquantum"

// hashRecipient is no recipient: it has age write the hash of the raw bytes as
// a stanza of the header, which the header's MAC covers.
type hashRecipient struct {
	hash        [32]byte
	postQuantum bool
}

var _ age.RecipientWithLabels = hashRecipient{}

// Wrap returns the stanza; it does not use the file key.
func (h hashRecipient) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	stanzas, _, err := h.WrapWithLabels(fileKey)
	return stanzas, err
}

// WrapWithLabels returns the stanza with the labels of the real recipients.
func (h hashRecipient) WrapWithLabels([]byte) ([]*age.Stanza, []string, error) {
	var labels []string
	if h.postQuantum {
		labels = []string{postQuantumLabel}
	}
	return []*age.Stanza{{Type: hashStanza, Args: []string{hex.EncodeToString(h.hash[:])}}}, labels, nil
}

// Seal begins an age file in dst for all recipients. What is written to the
// result is encrypted and passed on in chunks of 64 KiB; the object is whole
// only after Close, which does not close dst. If hash is not nil, it becomes
// the header's first stanza, where HeaderHash finds it. An error for empty
// recipients: such objects are not sealed, see Empty.
func (r Recipients) Seal(dst io.Writer, hash *[32]byte) (io.WriteCloser, error) {
	if r.Empty() {
		return nil, errNotSealing
	}
	to := make([]age.Recipient, 0, len(r.list)+1)
	if hash != nil {
		to = append(to, hashRecipient{hash: *hash, postQuantum: r.postQuantum})
	}
	for _, one := range r.list {
		to = append(to, one.age)
	}
	w := &headWriter{dst: dst}
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return nil, fmt.Errorf("seal object: %w", err)
	}
	if err := w.flush(); err != nil {
		return nil, fmt.Errorf("seal object: %w", err)
	}
	return sealed, nil
}

// headWriter gathers the header, which age writes in many small pieces.
type headWriter struct {
	dst     io.Writer
	head    bytes.Buffer
	flushed bool
}

// Write gathers before flush, and passes on after it.
func (w *headWriter) Write(p []byte) (int, error) {
	if !w.flushed {
		return w.head.Write(p)
	}
	return w.dst.Write(p)
}

func (w *headWriter) flush() error {
	w.flushed = true
	_, err := w.dst.Write(w.head.Bytes())
	w.head = bytes.Buffer{}
	return err
}
