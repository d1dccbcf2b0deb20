"""The QMP schema as data: types, commands and events, in pyvm's own compact notation.

`chapters` holds the text, `model` what it says, `validate` and `introspect` are visitors over the model.

The notation, one definition after another; what is indented belongs to the definition above it, `#` begins a comment:

    enum NAME                               enum values follow, any number in a line
    struct NAME [: BASE]                    members follow
    union NAME [: BASE] by MEMBER           members and `case VALUE: STRUCT` follow; MEMBER is an enum
    alternate NAME                          branches `name: TYPE` follow; each a different JSON type
    command NAME [: TYPE] [-> TYPE]         members of the arguments follow, or TYPE is all of them
    event NAME [: TYPE]                     members of the data follow, or TYPE is all of them

    name: TYPE                              a member; `name?:` is optional; `[TYPE]` is an array

Names, members and enum values may have features (`!deprecated`, `!unstable`) and a condition (`if=linux`); without the
condition they do not exist.  A command may also be `preconfig` (allowed before the machine is initialised), `oob`
(may be executed out of band), and `raw` (its handler takes the arguments as they came).
"""
