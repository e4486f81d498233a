package main

import (
	"errors"

	"agent/internal/errs"
	"agent/internal/storage"
)

// storeAdvice gives an error of a store, which knows no kinds, the kind that
// decides the exit status, and a hint. Errors that somebody has classified
// already stay as they are.
func storeAdvice(err error) error {
	if err == nil || errs.KindOf(err) != errs.Other {
		return err
	}
	switch {
	case errors.Is(err, storage.ErrNoSpace):
		return errs.Wrap(err, errs.NoSpace, "Make room where the repository is, or raise its quota; then run the same command again.", "")
	case errors.Is(err, storage.ErrNoBucket):
		return errs.Wrap(err, errs.Storage, "Correct the bucket's or container's name, or make it.", "")
	case errors.Is(err, storage.ErrPermission):
		return errs.Wrap(err, errs.Storage, "Let the user that runs the agent read and write the repository.", "")
	case errors.Is(err, storage.ErrUnavailable):
		return errs.Wrap(err, errs.Storage, "Look whether the repository can be reached, and run the same command again.", "")
	default:
		return err
	}
}
