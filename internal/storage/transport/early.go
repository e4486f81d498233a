package transport

import (
	"context"
	"net"
	"sync"
	"time"
)

// earlyWait bounds how long a broken write waits for what was answered before.
const earlyWait = time.Second

// hearEarly lets a client hear an answer that comes before the body was sent. A
// server that refuses (412 because the object exists, 403) may answer
// at once and close the connection; net/http then has an answer and a failed
// write at the same time and takes either, so that "exists" would look like a
// broken network and be repeated for nothing.
func hearEarly(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &conn{Conn: c, over: make(chan struct{})}, nil
	}
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// conn holds the error of a write back until the reader has come to the end
// too, or the connection is closed.
type conn struct {
	net.Conn
	once sync.Once
	over chan struct{}
}

func (c *conn) end() { c.once.Do(func() { close(c.over) }) }

// Read is that of the connection.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.end()
	}
	return n, err
}

// Write is that of the connection, with its error told late.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		timer := time.NewTimer(earlyWait)
		defer timer.Stop()
		select {
		case <-c.over:
		case <-timer.C:
		}
	}
	return n, err
}

// Close ends every wait.
func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}
