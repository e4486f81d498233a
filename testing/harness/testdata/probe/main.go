// Probe stands in for the agent in the harness's own tests: it prints who it
// is and what it was given, and ends as it is told.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("uid=%d\ndir=%s\n%s\n", os.Getuid(), dir, strings.Join(os.Environ(), "\n"))
	fmt.Fprintf(os.Stderr, "args=%q\n", os.Args[1:])
	if len(os.Args) == 2 && os.Args[1] == "hang" {
		time.Sleep(time.Hour) // it is killed before
	}
	code := 0
	if len(os.Args) == 2 {
		if code, err = strconv.Atoi(os.Args[1]); err != nil {
			code = 2
		}
	}
	os.Exit(code)
}
