package early

import (
	"errors"
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
	defer func() { _ = syscall.Close(fd) }() // the answer is here, or none is
	limit := syscall.NsecToTimeval(patience.Nanoseconds())
	for _, option := range []int{syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO} { // the first bounds connect(2), too
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &limit); err != nil {
			return false
		}
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: "@" + name}); err != nil {
		return false
	}
	// Abstract names have no permissions.
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil || int(peer.Uid) != os.Geteuid() {
		return false
	}
	if n, err := syscall.Write(fd, []byte(question+"\n")); err != nil || n != len(question)+1 {
		return false
	}
	answer := make([]byte, 0, len(yes))
	for len(answer) < len(yes) {
		n, err := syscall.Read(fd, answer[len(answer):cap(answer)])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		answer = answer[:len(answer)+n]
	}
	return string(answer) == yes
}
