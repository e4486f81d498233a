package beside

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
)

// maxMessage bounds a question or an answer, in bytes.
const maxMessage = 64 << 10

// Ask sends a question to the process that has the name and waits for its
// answer, until ctx is done. Both are JSON on one line.
func Ask(ctx context.Context, name Name, question, answer any) (err error) {
	conn, err := Dial(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the answer is here, or an error is
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := Send(conn, question); err != nil {
		return err
	}
	return Receive(conn, answer)
}

// Send writes one message.
func Send(conn net.Conn, message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads one message, the only one that its sender sends.
func Receive(conn net.Conn, message any) error {
	line, err := bufio.NewReader(io.LimitReader(conn, maxMessage)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(line, message); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
