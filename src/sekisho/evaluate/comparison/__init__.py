"""May B take A's place?"""
