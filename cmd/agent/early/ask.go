package early

import (
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// How long an answer is awaited. A process that archives answers sooner itself
// (package wal); over its time it hangs. One that fetches ahead is given as long
// as fetching the segment here would take at worst.
const (
	pushPatience  = 5 * time.Second
	fetchPatience = 5 * time.Minute
)

// push asks for a file. Until wal-push has seen to signals itself, they end it with status
// 1: the archiver takes a command that dies of one for a reason to die, too
// (pgarch.c, pgarch_archiveXlog).
func push(name, file string) (code int, answered bool) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	done := make(chan bool, 1)
	go func() { done <- ask(name, `{"file":"`+file+`","take":true}`, pushPatience) }()
	select {
	case yes := <-done:
		return 0, yes
	case <-signals:
		return 1, true
	}
}

// yes is what a process answers that has done what it is asked for (package
// beside: JSON on one line). Anything else is a no.
const yes = `{"done":true}` + "\n"

// ask asks the process that has the name, if there is one and it is this user's,
// by a system call for each step: package net would be initialised too late.
func ask(name, question string, patience time.Duration) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if !send(fd, name, question, patience) || syscall.SetNonblock(fd, true) != nil {
		_ = syscall.Close(fd) // nothing was asked, or in vain
		return false
	}
	// A thread that waits in a system call is one that the runtime looks after,
	// every 20 microseconds at first, which costs as much as all the rest here. It
	// sleeps while it waits for a file that it polls.
	conn := os.NewFile(uintptr(fd), name)
	defer func() { _ = conn.Close() }() // the answer is here, or none is
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return false
	}
	answer := make([]byte, len(yes))
	_, err = io.ReadFull(conn, answer)
	return err == nil && string(answer) == yes
}

// send connects to the process and asks it.
func send(fd int, name, question string, patience time.Duration) bool {
	limit := syscall.NsecToTimeval(patience.Nanoseconds())
	// It bounds connect(2), too.
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return false
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: "@" + name}); err != nil {
		return false
	}
	// Abstract names have no permissions.
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil || int(peer.Uid) != os.Geteuid() {
		return false
	}
	n, err := syscall.Write(fd, []byte(question+"\n"))
	return err == nil && n == len(question)+1
}
