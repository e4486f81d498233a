package stores

import "net"

// link is a client's connection and the one that was made to the store for it.
type link struct {
	client, store net.Conn
	ends          [2]*end // by direction
	ended         int     // directions that came to their end
}

// abort closes both connections, with RST or FIN. It may be called again.
func (l *link) abort(reset bool) {
	for _, c := range []net.Conn{l.client, l.store} {
		if tcp, ok := c.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0) // it may be closed already
		}
		_ = c.Close()
	}
}

// finish tells both sides that nothing more comes, and throws away what they
// still send: a connection closed with bytes unread would be reset.
func (l *link) finish() {
	for _, c := range []net.Conn{l.client, l.store} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.CloseWrite() // it may be closed already
		}
	}
}

// hung says whether bytes of the link were lost.
func (l *link) hung() bool { return l.ends[Requests].gone || l.ends[Answers].gone }

// end is where the bytes of one direction leave the proxy. Its Write never
// fails: what nobody takes any more is thrown away, so that all that went in
// before comes to an end.
type end struct {
	p         *FaultProxy
	link      *link
	direction Direction
	to        net.Conn
	passed    int64 // bytes since the fault was set
	gone      bool  // the rest vanishes
}

func (e *end) Write(b []byte) (int, error) {
	pass, after := e.look(b)
	if len(pass) > 0 {
		if _, err := e.to.Write(pass); err != nil {
			e.vanish()
			e.link.abort(false)
		}
	}
	if after != nil {
		after()
	}
	return len(b), nil
}

// look gives what of b is to be passed on, and what is to happen then.
func (e *end) look(b []byte) (pass []byte, after func()) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.gone {
		return nil, nil
	}
	fault := e.p.breaks[e.direction]
	if fault == nil || fault.times == 0 || e.passed+int64(len(b)) < fault.after {
		e.passed += int64(len(b))
		return b, nil
	}
	pass = b[:max(fault.after-e.passed, 0)]
	fault.times = max(fault.times-1, Always)
	e.p.struck++
	e.gone = true
	switch fault.kind {
	case cutting:
		e.link.ends[Requests].gone, e.link.ends[Answers].gone = true, true
		after = e.link.finish
	case resetting:
		after = func() { e.link.abort(true) }
	}
	return pass, after
}

func (e *end) vanish() {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.gone = true
}

// Close is called when all bytes of the direction have left.
func (e *end) Close() error {
	defer e.p.running.Done()
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.link.ended++; e.link.ended == len(e.link.ends) {
		e.link.abort(false)
		delete(e.p.links, e.link)
	} else if tcp, ok := e.to.(*net.TCPConn); ok && !e.gone {
		// The other direction may go on: an answer to a request that ended.
		_ = tcp.CloseWrite()
	}
	return nil
}
